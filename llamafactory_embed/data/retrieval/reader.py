"""Read the tasks of a recipe: find their entries, read and check every row, before any model is loaded."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import beir, files
from .entries import Entry, find_entries
from .formats import KNOWN_COLUMNS, NliPair, group_nli_pairs, parse_record
from .problems import BadRowError, BadRows
from .rows import Row, Task, sees_own_passages_only


# How many rows of each streamed data set are checked before training starts.
STREAM_PREVIEW = 1000


@dataclass(frozen=True)
class HubOptions:
    """How the hub is reached; the host's `cache_dir` and `hf_hub_token`."""

    cache_dir: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class StreamedTask:
    """A task whose rows are read again in every epoch and never held; its size is not known."""

    name: str
    open_rows: Callable[[], Iterator[Row]]
    instruction: str = ""
    symmetric: bool = False
    own_passages_only: bool = False


def load_tasks(
    dataset_names: Sequence[str] | str,
    dataset_dir: str | dict[str, Any],
    *,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
    num_negatives: int = 0,
    seed: int = 42,
    hub: HubOptions | None = None,
) -> list[Task]:
    """The tasks of a recipe, in its order, with all their rows; data sets of one `task` name are joined.

    `num_samples` of an entry and `max_samples` mean what they mean in the host's own stages: a seeded sample of that
    many rows (with repetition where there are fewer), then at most the first `max_samples` of each data set.
    """
    entries = find_entries(dataset_names, dataset_dir)
    return tasks_of_entries(entries, max_samples, skip_bad_rows, num_negatives, seed, hub or HubOptions())


def tasks_of_entries(
    entries: Sequence[Entry],
    max_samples: int | None,
    skip_bad_rows: bool,
    num_negatives: int,
    seed: int,
    hub: HubOptions,
) -> list[Task]:
    """`load_tasks` for entries that are already found."""
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    parts: dict[str, list[Task]] = {}
    for entry in entries:
        if not bad_rows.full:
            part = _read_entry(entry, bad_rows, hub)
            parts.setdefault(part.name, []).append(_limit(part, entry.num_samples, max_samples, seed))
    tasks = [_refuse_uneven_negatives(_join(same), num_negatives, bad_rows) for same in parts.values()]
    bad_rows.finish()
    for task in tasks:
        if not task.rows:
            raise ValueError(f"`dataset`: task `{task.name}` has no rows.")
    return tasks


def stream_tasks(
    dataset_names: Sequence[str] | str,
    dataset_dir: str | dict[str, Any],
    *,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
    hub: HubOptions | None = None,
) -> list[StreamedTask]:
    """The tasks of a recipe as streams; the first thousand rows of each data set are checked at once."""
    hub = hub or HubOptions()
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    parts: dict[str, list[Entry]] = {}
    for entry in find_entries(dataset_names, dataset_dir):
        if entry.num_samples is not None:
            raise ValueError(
                f"Data set `{entry.name}`: `num_samples` cannot be drawn from a stream; use `max_samples`."
            )
        parts.setdefault(entry.task, []).append(entry)
        empty = True
        for count, _ in enumerate(_rows_of_entry(entry, bad_rows, hub, streaming=True), start=1):
            empty = False
            if count >= STREAM_PREVIEW or bad_rows.full:
                break
        if empty and not bad_rows.count:
            raise ValueError(f"`dataset`: `{entry.name}` has no rows.")
    bad_rows.finish()

    tasks = []
    for same in parts.values():
        _refuse_different_symmetry(same[0].task, [entry.symmetric for entry in same])
        opener = _StreamOpener(tuple(same), max_samples, skip_bad_rows, hub)
        own_only = _own_passages_only(same[0])
        tasks.append(StreamedTask(same[0].task, opener, _only(same[0].instructions), same[0].symmetric, own_only))
    return tasks


@dataclass(frozen=True)
class _StreamOpener:
    """Opens a streamed task's rows; a class and not a closure, so that it can travel to a data worker."""

    entries: tuple[Entry, ...]
    max_samples: int | None
    skip_bad_rows: bool
    hub: HubOptions

    def __call__(self) -> Iterator[Row]:
        for entry in self.entries:
            bad_rows = BadRows(self.skip_bad_rows, KNOWN_COLUMNS)
            for count, row in enumerate(_rows_of_entry(entry, bad_rows, self.hub, streaming=True)):
                if not self.skip_bad_rows:
                    bad_rows.finish()
                if count == self.max_samples:
                    break
                if row.instruction is None and len(self.entries) > 1:
                    row = dataclasses.replace(row, instruction=entry.instructions[0])
                yield row
            bad_rows.finish()


def _read_entry(entry: Entry, bad_rows: BadRows, hub: HubOptions) -> Task:
    distractors: tuple[str, ...] = ()
    if not entry.on_hub and beir.is_beir_folder(entry.location):
        rows, distractors = beir.read_beir(entry.location, entry.split or "test")
    else:
        rows = list(_rows_of_entry(entry, bad_rows, hub, streaming=False))
    if not rows and not bad_rows.count:
        raise ValueError(f"`dataset`: `{entry.name}` ({entry.location}) has no rows.")
    return Task(
        name=entry.task,
        rows=rows,
        instruction=_only(entry.instructions),
        symmetric=entry.symmetric,
        own_passages_only=_own_passages_only(entry),
        distractors=distractors,
    )


def _rows_of_entry(entry: Entry, bad_rows: BadRows, hub: HubOptions, streaming: bool) -> Iterator[Row]:
    records = records_of_entry(entry, hub, streaming)
    return group_nli_pairs(parse_records(records, entry, bad_rows), consecutive_only=streaming)


def records_of_entry(entry: Entry, hub: HubOptions, streaming: bool) -> Iterator[files.LocatedRecord]:
    """The records of a data set as they stand in its file or on the hub."""
    return _hub_records(entry, hub, streaming) if entry.on_hub else files.read_records(entry.location)


def parse_records(records: Iterable[files.LocatedRecord], entry: Entry, bad_rows: BadRows) -> Iterator[Row | NliPair]:
    """Parse records one by one, noting bad ones; an instruction used in turn goes by the number of the record."""
    in_turn = entry.instructions if len(entry.instructions) > 1 else ()
    number = -1
    try:
        for number, (file, line, record) in enumerate(records):
            try:
                if isinstance(record, BadRowError):
                    raise record
                parsed = parse_record(record, entry.columns, file, line)
            except BadRowError as problem:
                bad_rows.add(file, line, str(problem))
                if bad_rows.full:
                    return
                continue
            if in_turn and parsed.instruction is None:
                parsed = dataclasses.replace(parsed, instruction=in_turn[number % len(in_turn)])
            yield parsed
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Data set `{entry.name}`: `{entry.location}` is not UTF-8 text after row {number + 1}; convert it."
        ) from error


def _hub_records(entry: Entry, hub: HubOptions, streaming: bool) -> Iterator[files.LocatedRecord]:
    import datasets

    split = entry.split or "train"
    try:
        records = datasets.load_dataset(
            entry.location,
            entry.subset,
            data_dir=entry.folder,
            data_files=entry.hub_files,
            split=split,
            cache_dir=hub.cache_dir,
            token=hub.token,
            streaming=streaming,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"Data set `{entry.name}`: `{entry.location}` (split `{split}`) cannot be loaded from the hub: {error}"
        ) from error
    yield from files.number_rows(records, f"{entry.location}[{split}]")


def _limit(task: Task, num_samples: int | None, max_samples: int | None, seed: int) -> Task:
    rows = list(task.rows)
    if num_samples is not None and rows:
        rng = random.Random(seed)
        sampled = rng.sample(rows, min(num_samples, len(rows)))
        rows = sampled + rng.choices(rows, k=num_samples - len(sampled))
    return dataclasses.replace(task, rows=rows if max_samples is None else rows[:max_samples])


def _join(parts: list[Task]) -> Task:
    """One task from the data sets that share its name; each keeps its instruction."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    _refuse_different_symmetry(first.name, [part.symmetric for part in parts])
    rows = [
        row
        if part.instruction == first.instruction or row.instruction is not None
        else dataclasses.replace(row, instruction=part.instruction)
        for part in parts
        for row in part.rows
    ]
    distractors = tuple(text for part in parts for text in part.distractors)
    return dataclasses.replace(first, rows=rows, distractors=distractors)


def _refuse_different_symmetry(task: str, symmetric: Sequence[bool]) -> None:
    if len(set(symmetric)) > 1:
        raise ValueError(f"Task `{task}` joins data sets of which only some are `symmetric`; give them all the same.")


def _refuse_uneven_negatives(task: Task, num_negatives: int, bad_rows: BadRows) -> Task:
    """A batch needs the same number of negatives in every row: a task has them in all rows or in none."""
    if num_negatives <= 0 or all(row.negatives for row in task.rows) or not any(row.negatives for row in task.rows):
        return task
    for row in task.rows:
        if not row.negatives and not bad_rows.full:
            problem = "this row has no negatives but others of its task have, and `num_negatives` is not 0"
            bad_rows.add(row.file, row.line, problem)
    return dataclasses.replace(task, rows=[row for row in task.rows if row.negatives])


def _own_passages_only(entry: Entry) -> bool:
    if entry.own_passages_only is not None:
        return entry.own_passages_only
    return sees_own_passages_only(entry.task)


def _only(instructions: tuple[str, ...]) -> str:
    """The task's one instruction; where several are used in turn, every row has its own."""
    return instructions[0] if len(instructions) == 1 else ""
