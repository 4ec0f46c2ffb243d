"""The tasks a recipe trains and evaluates on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.registry import HubOptions
from ...data.retrieval.reader import load_tasks
from ...data.retrieval.rows import Row, Task
from ...data.retrieval.stored_rows import StoredRows
from ...data.retrieval.stream import StreamedTask, stream_tasks
from ...hparams.contrastive import ContrastiveOptions, RetrievalDataOptions
from ...hparams.tdro import TdroOptions
from ...model.embedding_config import EmbeddingConfig
from .losses.rows import Similarity


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

AnyTask = Task | StreamedTask


def load_train_and_eval_tasks(
    options: RetrievalDataOptions,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    objectives: Mapping[str, Mapping[str, Any]],
) -> tuple[Sequence[AnyTask], list[Task]]:
    """Rows of `dataset` and `eval_dataset`, or a part of each task (`val_size`), before any model is loaded. With
    `streaming` the rows to train on are a stream; rows to evaluate on are held, as their texts are a corpus. Tasks to
    train on have the settings of `objectives` and of their data sets."""
    renew = data_args.overwrite_cache and training_args.local_process_index == 0
    processes = data_args.preprocessing_num_workers or 1
    hub = HubOptions(model_args.cache_dir, model_args.hf_hub_token, renew, processes)

    def load(
        names: list[str] | None, num_negatives: int, own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[Task]:
        if not names:
            return []
        with one_process_first(data_args, training_args, "preparing the rows"):
            return load_tasks(
                names,
                data_args.dataset_dir,
                max_samples=data_args.max_samples,
                skip_bad_rows=options.skip_bad_rows,
                num_negatives=num_negatives,
                seed=training_args.seed,
                hub=hub,
                objectives=own,
            )

    tasks: Sequence[AnyTask] = []
    eval_tasks = load(data_args.eval_dataset, num_negatives=0)  # negatives only enlarge the corpus
    if training_args.do_train or not eval_tasks:
        if data_args.streaming:
            streams = stream_tasks(
                data_args.dataset,
                data_args.dataset_dir,
                skip_bad_rows=options.skip_bad_rows,
                num_negatives=options.num_negatives,
                hub=hub,
                objectives=objectives,
            )
            if data_args.val_size > 0:
                eval_tasks = [hold_out(task, int(data_args.val_size)) for task in streams]
                streams = [skip_rows(task, int(data_args.val_size)) for task in streams]
            tasks = streams
        else:
            held = load(data_args.dataset, options.num_negatives, objectives)
            if data_args.val_size > 0:
                held, eval_tasks = split_tasks(held, data_args.val_size, training_args.seed)
            tasks = held
    return (tasks if training_args.do_train else []), eval_tasks


def one_process_first(
    data_args: DataArguments, training_args: TrainingArguments, what: str
) -> contextlib.AbstractContextManager[None]:
    """One process of each machine, or of all that share a disk, prepares data; the others find them in the cache."""
    return training_args.main_process_first(local=not data_args.data_shared_file_system, desc=what)


def split_tasks(tasks: list[Task], val_size: float, seed: int) -> tuple[list[Task], list[Task]]:
    """Hold out a part of each task: a share of its rows below 1, a number of rows from 1 on (as in the host)."""
    train, held_out = [], []
    for task in tasks:
        count = int(val_size) if val_size >= 1 else max(1, round(len(task.rows) * val_size))
        if count >= len(task.rows):
            raise ValueError(
                f"`val_size: {val_size}` would hold out all {len(task.rows)} rows of task `{task.name}`: lower it."
            )
        order = array("q", range(len(task.rows)))
        random.Random(seed).shuffle(order)
        rows, places = StoredRows.of(task.rows), np.array(order)
        held_out.append(dataclasses.replace(task, rows=rows.select(np.sort(places[:count]))))
        train.append(dataclasses.replace(task, rows=rows.select(np.sort(places[count:]))))
    return train, held_out


def take_rows(task: StreamedTask, count: int) -> Task:
    """The first rows of a stream, held."""
    rows = list(itertools.islice(task.open_rows(), count))
    return Task(task.name, rows, task.instruction, task.symmetric, task.own_passages_only)


def hold_out(task: StreamedTask, count: int) -> Task:
    """A stream's first rows to evaluate on, with the whole corpus of its BEIR folders."""
    return dataclasses.replace(take_rows(task, count), corpus=task.read_corpus())


def skip_rows(task: StreamedTask, count: int) -> StreamedTask:
    """The stream without its first rows."""
    if next(itertools.islice(task.open_rows(), count, None), None) is None:
        raise ValueError(f"`val_size: {count}` would hold out all rows of task `{task.name}`: lower it.")
    return dataclasses.replace(task, open_rows=_RowsAfter(task.open_rows, count))


@dataclass(frozen=True)
class _RowsAfter:
    open_rows: Callable[[], Iterator[Row]]
    count: int

    def __call__(self) -> Iterator[Row]:
        return itertools.islice(self.open_rows(), self.count, None)


def first_rows(task: AnyTask, count: int) -> Sequence[Row]:
    """The first rows of a task, held or streamed."""
    return task.rows[:count] if isinstance(task, Task) else take_rows(task, count).rows


def embedding_config(
    options: ContrastiveOptions | TdroOptions,
    cutoff_len: int,
    model_args: ModelArguments,
    tasks: Sequence[AnyTask],
    similarity: Similarity,
    matryoshka_dims: list[int] | None = None,
    multi_vector: bool = False,
) -> EmbeddingConfig:
    """What the checkpoint will remember; `load_embedding_model_for_training` adds which adapters were merged."""
    return EmbeddingConfig.from_options(
        options,
        cutoff_len,
        instructions={task.name: task.instruction for task in tasks},
        symmetric_tasks=[task.name for task in tasks if task.symmetric],
        base_model=model_args.model_name_or_path,
        similarity=similarity,
        matryoshka_dims=matryoshka_dims,
        multi_vector=multi_vector,
    )
