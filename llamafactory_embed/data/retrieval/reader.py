"""From the data sets of a recipe to tasks: every row is read and checked before any model is loaded."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...hparams.suggestion import suggest
from ..files import LocatedRecord, number_rows, read_records
from ..problems import BadRowError, BadRows
from ..registry import HubOptions
from . import beir
from .entries import Entry, find_entries, load_hub_rows, split_on_hub
from .formats import KNOWN_COLUMNS, NliPair, Record, group_nli_pairs, parse_record
from .kept_rows import keep_data_set
from .references import References
from .rows import Row, Task, negatives_in_batch, sees_own_passages_only
from .stored_rows import Piece, StoredRows
from .teacher_vectors import TeacherVectors
from .text_table import StoredTexts


NO_NEGATIVES = "this row has no negatives but others of its task have, and `num_negatives` is not 0"


def load_tasks(
    dataset_names: Sequence[str] | str,
    dataset_dir: str | dict[str, Any],
    *,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
    num_negatives: int = 0,
    seed: int = 42,
    hub: HubOptions | None = None,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Task]:
    """The tasks of a recipe, in its order, with all their rows; data sets of one `task` name are joined.

    `objectives` is what the recipe sets for some of the tasks to train on. Where it is None nothing is trained, and
    the objectives of data sets do not matter.

    `num_samples` of an entry and `max_samples` mean what they mean in the host's stages: a seeded sample of that
    many rows (with repetition where there are fewer), then at most the first `max_samples` of each data set.
    """
    entries = find_entries(dataset_names, dataset_dir)
    hub = hub or HubOptions()
    return tasks_of_entries(entries, max_samples, skip_bad_rows, num_negatives, seed, hub, objectives)


def tasks_of_entries(
    entries: Sequence[Entry],
    max_samples: int | None,
    skip_bad_rows: bool,
    num_negatives: int,
    seed: int,
    hub: HubOptions,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Task]:
    """`load_tasks` for entries that have been looked up."""
    settings = task_objectives(entries, objectives)
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    parts: dict[str, list[Task]] = {}
    for entry in entries:
        if not bad_rows.full:
            part = _read_entry(entry, bad_rows, hub)
            parts.setdefault(part.name, []).append(_limit(part, entry, max_samples, seed))
    tasks = [
        _refuse_uneven_negatives(_with_objective(_join(same), settings[name]), num_negatives, bad_rows)
        for name, same in parts.items()
    ]
    bad_rows.finish()
    for task in tasks:
        if not task.rows:
            raise ValueError(f"`dataset`: task `{task.name}` has no rows.")
    return tasks


# ------------------------------------------------ one data set -------------------------------------------------


def rows_of_entry(
    entry: Entry, bad_rows: BadRows, hub: HubOptions | None = None, *, streaming: bool = False
) -> Iterator[Row]:
    """The rows of a data set. A stream holds none of them, and groups labelled pairs only where they are adjacent."""
    if is_beir(entry):
        collection = open_collection(entry, bad_rows)
        collection.read_passages()
        yield from rows_of_collection(collection, entry)
        return
    hub = hub or HubOptions()
    records = parse_records(records_of_entry(entry, hub, streaming), entry, bad_rows, hub)
    for _, row in group_nli_pairs(records, consecutive_only=streaming):
        yield row


def records_of_entry(entry: Entry, hub: HubOptions, streaming: bool) -> Iterator[LocatedRecord]:
    """The records of a data set as they stand in its file or on the hub."""
    if not entry.on_hub:
        yield from read_records(entry.location)
        return
    records = load_hub_rows(entry, hub, streaming=streaming)
    yield from number_rows(records, f"{entry.location}[{split_on_hub(entry)}]")


def parse_records(
    records: Iterable[LocatedRecord], entry: Entry, bad_rows: BadRows, hub: HubOptions | None = None, first: int = 0
) -> Iterator[tuple[Record, Row | NliPair]]:
    """Each record with the row it holds; bad ones are noted. Instructions take turns by the number of the record, of
    which `first` is that of the first. Where rows name texts by id, the texts are read first."""
    references = References.read(entry, bad_rows, hub or HubOptions())
    teacher, count = TeacherVectors.of(entry), 0
    for number, (file, line, record) in enumerate(records, first):
        count = number + 1
        try:
            if isinstance(record, BadRowError):
                raise record
            parsed = teacher.give(parse_record(references.resolve(record), entry.columns, file, line), record, number)
        except BadRowError as problem:
            bad_rows.add(file, line, str(problem))
            if bad_rows.full:
                return
            continue
        in_turn = instruction_in_turn(entry, number)
        if in_turn is not None and parsed.instruction is None:
            parsed = dataclasses.replace(parsed, instruction=in_turn)
        yield record, parsed
    teacher.refuse_other_than(count)


def instruction_in_turn(entry: Entry, number: int) -> str | None:
    """The instruction of a row where several take turns; None where the task's one instruction holds."""
    return entry.instructions[number % len(entry.instructions)] if len(entry.instructions) > 1 else None


def is_beir(entry: Entry) -> bool:
    """Whether the entry is a folder in the layout of BEIR or MIRACL."""
    return not entry.on_hub and beir.is_collection(entry.location)


def open_collection(entry: Entry, bad_rows: BadRows) -> beir.Collection:
    """The BEIR folder of an entry, with the judgements of its split."""
    if entry.teacher_vectors is not None:
        raise ValueError(f"Data set `{entry.name}`: `teacher_vectors` belong to records, and a BEIR folder has none.")
    return beir.Collection(entry.location, entry.split or "test", bad_rows)


def rows_of_collection(collection: beir.Collection, entry: Entry) -> Iterator[Row]:
    """Judged queries with their relevant passages, after the passages have been read."""
    for number, query in enumerate(collection.queries()):
        yield Row(
            query.text,
            tuple(query.relevant.values()),
            instruction=instruction_in_turn(entry, number),
            file=collection.queries_file,
            line=query.line,
        )


def _read_entry(entry: Entry, bad_rows: BadRows, hub: HubOptions) -> Task:
    def read(problems: BadRows, keep_passage: Callable[[str], None]) -> Iterator[Row]:
        if not is_beir(entry):
            yield from rows_of_entry(entry, problems, hub)
            return
        collection = open_collection(entry, problems)
        for passage in collection.passages():
            keep_passage(passage.text)
        yield from rows_of_collection(collection, entry)

    kept = keep_data_set(entry, bad_rows, hub, read)
    if not kept.rows and not bad_rows.count:
        raise ValueError(f"`dataset`: `{entry.name}` ({entry.location}) has no rows.")
    return Task(
        entry.task,
        StoredRows([Piece(kept.rows)]),
        task_instruction(entry),
        symmetric=entry.symmetric,
        own_passages_only=own_passages_only(entry),
        corpus=kept.corpus,
    )


def own_passages_only(entry: Entry) -> bool:
    """What the entry says, or else the name of its task."""
    if entry.own_passages_only is not None:
        return entry.own_passages_only
    return sees_own_passages_only(entry.task)


def task_instruction(entry: Entry) -> str:
    """The task's one instruction; where several take turns, every row has one."""
    return entry.instructions[0] if len(entry.instructions) == 1 else ""


# ------------------------------------------------ whole tasks --------------------------------------------------


def task_objectives(
    entries: Sequence[Entry], of_recipe: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Mapping[str, Any]]:
    """Every task's settings: those of its data sets, which must agree, replaced by those of the recipe."""
    tasks = dict.fromkeys(entry.task for entry in entries)
    if of_recipe is None:
        return {task: {} for task in tasks}
    for name in of_recipe:
        if name not in tasks:
            raise ValueError(f"`objectives` names {name}, which is no task of `dataset`{suggest(name, tasks)}")
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if found.setdefault(entry.task, entry.objective) != entry.objective:
            raise ValueError(
                f"Task `{entry.task}` joins data sets whose `objective` differs; give all of them the same."
            )
    return {task: {**found[task], **of_recipe.get(task, {})} for task in tasks}


def _with_objective(task: Task, settings: Mapping[str, Any]) -> Task:
    own = settings.get("own_passages_only", task.own_passages_only)
    return dataclasses.replace(task, objective=settings, own_passages_only=own)


def _limit(task: Task, entry: Entry, max_samples: int | None, seed: int) -> Task:
    """The first rows that the recipe names, of these a sample of the entry's `num_samples`, of that the first
    `max_samples`."""
    rows = range(len(task.rows))[: entry.first_rows]
    numbers = np.arange(len(rows))
    if entry.num_samples is not None and rows:
        rng = random.Random(seed)
        sampled = rng.sample(rows, min(entry.num_samples, len(rows)))
        numbers = np.array(sampled + rng.choices(rows, k=entry.num_samples - len(sampled)))
    numbers = numbers[:max_samples]
    if entry.num_samples is None and len(numbers) == len(task.rows):
        return task
    (piece,) = StoredRows.of(task.rows).pieces
    return dataclasses.replace(task, rows=StoredRows([dataclasses.replace(piece, numbers=numbers)]))


def _join(parts: list[Task]) -> Task:
    """One task from the data sets that share its name; each keeps its instruction."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    refuse_different(first.name, "symmetric", [part.symmetric for part in parts])
    refuse_different(first.name, "own_passages_only", [part.own_passages_only for part in parts])
    pieces = [
        dataclasses.replace(piece, instruction=None if part.instruction == first.instruction else part.instruction)
        for part in parts
        for piece in StoredRows.of(part.rows).pieces
    ]
    corpus = StoredTexts.joined(part.corpus for part in parts)
    return dataclasses.replace(first, rows=StoredRows(pieces), corpus=corpus)


def refuse_different(task: str, key: str, values: Sequence[bool]) -> None:
    """Data sets that are joined to a task must agree on what holds for all of its rows."""
    if len(set(values)) > 1:
        raise ValueError(f"Task `{task}` joins data sets of which only some are `{key}`; give all of them the same.")


def _refuse_uneven_negatives(task: Task, num_negatives: int, bad_rows: BadRows) -> Task:
    """A batch needs the same number of negatives in every row: a task has them in all rows or in none."""
    if negatives_in_batch(task.objective, num_negatives) <= 0:
        return task
    rows = StoredRows.of(task.rows)
    have_negatives = rows.have_negatives()
    if have_negatives.all() or not have_negatives.any():
        return task
    for place in np.flatnonzero(~have_negatives).tolist():
        if bad_rows.full:
            break
        bad_rows.add(rows[place].file, rows[place].line, NO_NEGATIVES)
    return dataclasses.replace(task, rows=rows.select(np.flatnonzero(have_negatives)))
