"""From names and paths to tasks of mteb."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.retrieval.entries import make_entry
from ..foreign import read_json_object
from ..hparams.suggestion import suggest
from .groups import GROUPS, SPLITS, Group


if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType


LOCAL = "local"  # the group of local data
ROWS_AT_ONCE = 512  # that mteb reads


@dataclass(frozen=True)
class ChosenTask:
    """A task, and the name that brought it."""

    task: AbsTask
    group: str
    """The group that it was named by, or `local`, or nothing."""
    is_local: bool = False

    @property
    def name(self) -> str:
        """The task's name in results."""
        return self.task.metadata.name

    @property
    def parts(self) -> list[AbsTask]:
        """The tasks that are run: several where mteb takes the mean of some (CQADupstack), otherwise the one."""
        from mteb.abstasks.aggregated_task import AbsTaskAggregate

        return list(self.task.metadata.tasks) if isinstance(self.task, AbsTaskAggregate) else [self.task]

    @property
    def is_retrieval(self) -> bool:
        """Whether the task is one of searching."""
        from mteb.abstasks import AbsTaskRetrieval

        return all(isinstance(part, AbsTaskRetrieval) for part in self.parts)


def choose_tasks(
    names: Sequence[str], dataset_dir: str | None, languages: Sequence[str] | None = None, option: str = "tasks"
) -> list[ChosenTask]:
    """The tasks, each once, in the order in which they are named. Local data are read and checked here."""
    chosen: dict[str, ChosenTask] = {}
    sources: dict[str, str] = {}
    for name in names:
        with same_random_numbers():
            try:
                new = find_tasks(name, dataset_dir, languages)
            except ValueError as error:
                raise ValueError(f"`{option}`: {error}") from error
        for task in new:
            if chosen.setdefault(task.name, task) is not task and sources[task.name] != name and task.is_local:
                raise ValueError(
                    f"`{option}`: {sources[task.name]} and {name} would both be called `{task.name}`: rename one."
                )
            sources.setdefault(task.name, name)
    return list(chosen.values())


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """mteb seeds all generators whenever a task is made, which would change a training that continues."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def find_tasks(name: str, dataset_dir: str | None, languages: Sequence[str] | None) -> list[ChosenTask]:
    """The tasks that one name or path stands for."""
    from .local import load_entry, load_path, split_path

    _, path, _ = split_path(name)
    if os.path.exists(path):
        return [ChosenTask(load_path(name).task, LOCAL, is_local=True)]
    entries = read_entries(dataset_dir)
    if name in entries:
        entry = make_entry(name, entries[name], dataset_dir or "")
        return [ChosenTask(load_entry(entry).task, LOCAL, is_local=True)]
    if name.lower() in GROUPS:
        return tasks_of_group(name.lower(), GROUPS[name.lower()], languages)
    return tasks_of_mteb(name, languages, entries)


def tasks_of_group(name: str, group: Group, languages: Sequence[str] | None) -> list[ChosenTask]:
    """A named group, in the languages of the options."""
    import mteb

    if group.benchmark is not None:
        return limit_languages(name, list(mteb.get_benchmark(group.benchmark).tasks), languages)
    tasks = [mteb.get_task(task, eval_splits=SPLITS.get(task)) for task in group.tasks]
    return limit_languages(name, tasks, languages)


def tasks_of_mteb(name: str, languages: Sequence[str] | None, entries: Mapping[str, Any]) -> list[ChosenTask]:
    """A task or benchmark by mteb's own name."""
    import mteb

    try:
        return limit_languages("", [mteb.get_task(name, eval_splits=SPLITS.get(name))], languages)
    except KeyError:  # not a task
        pass
    try:
        return limit_languages(name, list(mteb.get_benchmark(name).tasks), languages)
    except KeyError:  # not a benchmark
        pass
    if os.sep in name or name.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")):
        raise ValueError(f"there is no file or folder {name}.")
    names = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, exclude_private=False)]
    names += [*(benchmark.name for benchmark in mteb.get_benchmarks()), *GROUPS, *entries]
    raise ValueError(
        f"{name} is no task or benchmark of mteb, no group ({', '.join(GROUPS)}), no path, and no data set of "
        f"dataset_info.json{suggest(name, names)}"
    )


def limit_languages(group: str, tasks: Sequence[AbsTask], languages: Sequence[str] | None) -> list[ChosenTask]:
    """Tasks in some languages; a task in none of them is left out."""
    if languages is None:
        return [ChosenTask(task, group) for task in tasks]
    asked = set(languages)
    chosen = []
    for task in tasks:
        if asked & {language.split("-")[0] for language in task.metadata.languages}:
            # a copy: the tasks of a benchmark are mteb's own, and the filter would stay on them
            chosen.append(ChosenTask(copy.copy(task).filter_languages(list(languages)), group))
    if not chosen:
        raise ValueError(f"`languages`: {', '.join(languages)} is a language of none of the tasks of {group}.")
    return chosen


def read_entries(dataset_dir: str | None) -> dict[str, Any]:
    """`dataset_info.json`, if there is one."""
    path = Path(dataset_dir or "") / "dataset_info.json"
    if dataset_dir is None or not path.is_file():
        return {}
    return read_json_object(path, "`dataset_dir` names its folder.")


def texts_of(rows: Dataset, task_metadata: TaskMetadata, prompt_type: PromptType) -> list[str]:
    """What a model reads of a corpus (title and text) or of queries (text and instruction), joined as mteb joins them
    for every model. mteb has no public name for it; its own search wrappers call this function, which looks at a
    document in 100 µs or more, so that documents that are texts alone are joined here."""
    from mteb._create_dataloaders import create_dataloader

    if len(rows) == 0:
        return []
    if prompt_type.value == "document" and set(rows.column_names) - {"title"} == {"id", "text"}:
        columns = rows[:]
        if all(isinstance(value, str) for values in columns.values() for value in values):
            return join_titles(columns["text"], columns.get("title"))
    loader = create_dataloader(rows, task_metadata=task_metadata, prompt_type=prompt_type, batch_size=ROWS_AT_ONCE)
    return [text for batch in loader for text in batch["text"]]


def join_titles(texts: Sequence[str], titles: Sequence[str] | None) -> list[str]:
    """The texts of documents, each behind its title if it has one."""
    if titles is None:
        return [text.strip() for text in texts]
    return [f"{title} {text}".strip() if title else text.strip() for title, text in zip(titles, texts, strict=True)]
