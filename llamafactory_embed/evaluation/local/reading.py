"""What all local tasks share: records, and how data become a task of mteb."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata

from ...data import files
from ...data.problems import BadRowError, BadRows, check_characters
from ..revisions import revision_of_data


@dataclass(frozen=True)
class LocalTask:
    """A task of mteb whose data are in memory."""

    task: AbsTask
    source: str

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.task.metadata.name


def make_task(
    base: type[AbsTask],
    name: str,
    source: str,
    dataset: Any,
    *,
    kind: Any,
    main_score: str,
    prompt: Any = None,  # mteb's own type is a TypedDict
    split: str = "test",
    subsets: Sequence[str] = (),
    further_files: Sequence[str] = (),
    **attributes: Any,
) -> LocalTask:
    """A task of one of mteb's classes around data in memory; `subsets` are the names of its parts, if it has several.

    Its revision is a digest of `source`, of `further_files` that its data come from, and of the instruction: results
    are reused only for the very same data.
    """
    further = "".join(revision_of_data(file) for file in further_files)
    metadata = TaskMetadata(
        name=name,
        description=f"Local data: {source}",
        dataset={"path": source, "revision": revision_of_data(source, repr(prompt) + further)},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=[split],
        # mteb knows no undetermined language, and nothing of the score depends on it
        eval_langs={subset: ["eng-Latn"] for subset in subsets} if subsets else ["eng-Latn"],
        main_score=main_score,
        prompt=prompt,
    )

    def load_data(self: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        self.dataset = dataset
        self.data_loaded = True

    task = type(name, (base,), {"metadata": metadata, "load_data": load_data, **attributes})()
    task.load_data()
    return LocalTask(task, source)


def columns_of(path: str) -> list[str]:
    """The columns of the first record that can be read."""
    for _, _, record in files.read_records(path):
        if not isinstance(record, BadRowError):
            return list(record)
    return []


def read_fields(path: str, fields: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Records with some fields, each under the first of its names that the record has. Bad rows are reported
    together."""
    columns = "; ".join(f"{field} ({', '.join(names)})" for field, names in fields.items())
    bad_rows = BadRows(known_columns=columns, can_skip=False)
    for file, line, record in files.read_records(path):
        try:
            if isinstance(record, BadRowError):
                raise record
            yield {field: _value(record, field, names) for field, names in fields.items()}
        except BadRowError as problem:
            bad_rows.add(file, line, str(problem))
            if bad_rows.full:
                break
    bad_rows.finish()


def _value(record: dict[str, Any], field: str, names: tuple[str, ...]) -> Any:
    name = next((name for name in names if name in record), None)
    if name is None:
        raise BadRowError(f"there is no column `{field}` among {', '.join(f'`{each}`' for each in record)}")
    value = record[name]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRowError(f"`{name}` is empty")
    return check_characters(value, name) if isinstance(value, str) else value


def is_label_folder(path: str) -> bool:
    """A folder with a file `train` to learn from and a file `test` to judge on."""
    return all(split_file(path, split) is not None for split in ("train", "test"))


def split_file(path: str, split: str) -> str | None:
    """The data file of a split in a folder."""
    if not os.path.isdir(path):
        return None
    return next(
        (os.path.join(path, name) for name in files.data_files(path) if name.split(".")[0] == split),
        None,
    )
