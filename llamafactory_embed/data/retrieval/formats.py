"""From a record of a file or a hub to a `Row`: the shapes of retrieval data, recognised by their columns."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...hparams.suggestion import nearest
from ..problems import BadRowError, check_characters
from .columns import Record, list_of_texts, number_of, optional_text, query_of, scores_of, text_of, type_name
from .rows import Row


# What a column is for, and its names in public data sets; the first that a record has is used.
ROLES: dict[str, tuple[str, ...]] = {
    "query": ("query", "anchor", "question", "sentence1"),
    "positive": ("positive", "positives", "pos", "answer", "sentence2"),
    "negative": ("negative", "negatives", "neg"),
    "score": ("score", "scores", "similarity_score"),
    "instruction": ("instruction",),
    "text": ("text", "sentence"),
}
# Columns that hold ids instead of texts, where the entry of the data set names the texts.
ID_ROLES: dict[str, tuple[str, ...]] = {
    "query_id": ("query_id",),
    "positive_ids": ("positive_ids", "positive_id"),
    "negative_ids": ("negative_ids", "negative_id"),
}
ID_ROLE_OF = {"query": "query_id", "positive": "positive_ids", "negative": "negative_ids"}
SET_COLUMN = "set"
PASSAGE_COLUMNS = ("positive_passages", "negative_passages", "new_negatives")
NLI_COLUMNS = ("premise", "hypothesis", "label")
NUMBERED_NEGATIVE = re.compile(r"negative_?\d+")
KNOWN_COLUMNS = (
    "; ".join(f"{role} ({', '.join(f'`{name}`' for name in names)})" for role, names in ROLES.items())
    + "; `negative_1` … `negative_n`; "
    + ", ".join(f"`{name}`" for name in (*PASSAGE_COLUMNS, *NLI_COLUMNS, SET_COLUMN))
)

# MS MARCO with instructions (Weller et al. 2024): up to this many generated negatives are taken before sampling.
MOST_LEADING_NEGATIVES = 3

# Labels of natural language inference, as numbers (the order of SNLI, MultiNLI and AllNLI) and as words.
NLI_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction", "-1": "none", "-": "none", "": "none"}


@dataclass(frozen=True, slots=True)
class NliPair:
    """One labelled pair; `group_nli_pairs` joins the pairs of a premise into a row."""

    premise: str
    hypothesis: str
    label: str
    instruction: str | None
    file: str
    line: int


@dataclass(frozen=True)
class Layout:
    """Which columns of a record play which role."""

    shape: str
    """`passages`, `nli`, `triple` (with or without negatives and score), `set` or `text`."""
    roles: Mapping[str, str]
    numbered_negatives: tuple[str, ...] = ()


def parse_record(record: Record, columns: Mapping[str, str], file: str, line: int) -> Row | NliPair:
    """Turn a record into a row; `columns` maps a role to the column the user named for it."""
    layout = find_layout(tuple(record), tuple(sorted(columns.items())))
    instruction = optional_text(record, layout.roles.get("instruction"))
    if layout.shape == "nli":
        return NliPair(
            premise=text_of(record, "premise"),
            hypothesis=text_of(record, "hypothesis"),
            label=_nli_label(record["label"]),
            instruction=instruction,
            file=file,
            line=line,
        )
    if layout.shape == "text":
        text = text_of(record, layout.roles["text"])
        return Row(text, (text,), instruction=instruction, file=file, line=line)
    if layout.shape == "set":
        first, *others = _members_of_set(record[SET_COLUMN])
        return Row(first, tuple(others), instruction=instruction, file=file, line=line)
    if layout.shape == "passages":
        return _parse_passages(record, layout, instruction, file, line)
    return _parse_triple(record, layout, instruction, file, line)


@functools.lru_cache(maxsize=1024)
def find_layout(columns: tuple[str, ...], named: tuple[tuple[str, str], ...]) -> Layout:
    """Recognise the shape of a record from its columns."""
    roles = {}
    for role, names in ROLES.items():
        present = next((name for name in names if name in columns), None)
        if present is not None:
            roles[role] = present
    for role, column in named:
        if column in columns:
            roles[role] = column
        elif role in ("query", "positive", "text"):
            raise BadRowError(f"there is no column `{column}`, which `columns` names as `{role}`")
        else:
            roles.pop(role, None)  # rows without a negative, score or instruction may leave the column out
    numbered = tuple(sorted(filter(NUMBERED_NEGATIVE.fullmatch, columns), key=_number_in))

    if "positive_passages" in columns:
        if "query" not in roles and "text" in roles:
            roles["query"] = roles["text"]  # the unprocessed files of tDRO
        shape = "passages"
    elif all(name in columns for name in NLI_COLUMNS):
        shape = "nli"
    elif "query" in roles and "positive" in roles:
        shape = "triple"
    elif SET_COLUMN in columns and "query" not in roles and "positive" not in roles:
        shape = "set"
    elif "text" in roles and "query" not in roles and "positive" not in roles:
        shape = "text"
    else:
        missing = [role for role in ("query", "positive") if role not in roles]
        raise BadRowError(_explain_missing(missing, columns))
    if shape == "passages" and "query" not in roles:
        raise BadRowError(_explain_missing(["query"], columns))

    layout = Layout(shape, roles, numbered)
    _refuse_misspelt_columns(layout, columns)
    return layout


def group_nli_pairs(
    parsed: Iterable[tuple[Record, Row | NliPair]], consecutive_only: bool = False
) -> Iterator[tuple[Record | None, Row]]:
    """Rows from labelled pairs: a premise with its entailments as positives and its contradictions as negatives.

    A premise that entails nothing makes no row. Other rows pass unchanged, with their record. In a stream, where the
    whole is never held, only pairs that follow each other are grouped.
    """
    groups: dict[tuple[str, str | None], list[NliPair]] = {}
    for record, item in parsed:
        if isinstance(item, Row):
            yield record, item
            continue
        key = (item.premise, item.instruction)
        if consecutive_only and key not in groups:
            yield from ((None, row) for row in _rows_of_groups(groups))
            groups = {}
        groups.setdefault(key, []).append(item)
    yield from ((None, row) for row in _rows_of_groups(groups))


def _rows_of_groups(groups: Mapping[tuple[str, str | None], list[NliPair]]) -> Iterator[Row]:
    for (premise, instruction), pairs in groups.items():
        positives = [pair for pair in pairs if pair.label == "entailment"]
        if positives:
            yield Row(
                premise,
                tuple(dict.fromkeys(pair.hypothesis for pair in positives)),
                tuple(dict.fromkeys(pair.hypothesis for pair in pairs if pair.label == "contradiction")),
                instruction=instruction,
                file=positives[0].file,
                line=positives[0].line,
            )


def _parse_triple(record: Record, layout: Layout, instruction: str | None, file: str, line: int) -> Row:
    positives = list_of_texts(record, layout.roles["positive"])
    if not positives:
        raise BadRowError(f"`{layout.roles['positive']}` is empty")
    negatives: tuple[str, ...] = ()
    for column in (layout.roles.get("negative"), *layout.numbered_negatives):
        negatives += () if column is None else list_of_texts(record, column, empty_is_none=True)
    instruction_of_query, query = query_of(record, layout.roles["query"])
    return Row(
        query,
        positives,
        negatives,
        scores_of(record, layout.roles.get("score"), len(positives) + len(negatives)),
        instruction_of_query or instruction,
        file=file,
        line=line,
    )


def _members_of_set(value: object) -> tuple[str, ...]:
    """The texts of `set`, all of which mean the same; the first becomes the query."""
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        raise BadRowError(f"`{SET_COLUMN}` must be a list of at least two texts")
    return list_of_texts({SET_COLUMN: value}, SET_COLUMN)


def _parse_passages(record: Record, layout: Layout, instruction: str | None, file: str, line: int) -> Row:
    positives = _passages(record, "positive_passages")
    if not positives:
        raise BadRowError("`positive_passages` is empty")
    generated = _passages(record, "new_negatives")
    leading, further = generated[:MOST_LEADING_NEGATIVES], generated[MOST_LEADING_NEGATIVES:]
    passages = [*positives, *leading, *_passages(record, "negative_passages"), *further]
    texts = tuple(text for text, _ in passages)
    scores = tuple(score for _, score in passages if score is not None)
    if scores and len(scores) < len(passages):
        raise BadRowError("`ce_score` is given for some passages but not for all")
    return Row(
        text_of(record, layout.roles["query"]),
        texts[: len(positives)],
        texts[len(positives) :],
        scores or None,
        instruction,
        leading_negatives=len(leading),
        file=file,
        line=line,
    )


def _passages(record: Record, column: str) -> list[tuple[str, float | None]]:
    """The texts of a list of passages, with their teacher scores.

    As in tDRO, a title (even an empty one) goes before the text with one space between.
    """
    value = record.get(column)
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = _transpose(value, column)
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f"`{column}` must be a list of passages, not {type_name(value)}")
    passages: list[tuple[str, float | None]] = []
    for passage in value:
        if isinstance(passage, str):
            passage = {"text": passage}
        if not isinstance(passage, Mapping) or not isinstance(passage.get("text"), str):
            raise BadRowError(f"a passage of `{column}` must be text or have a `text`, not {type_name(passage)}")
        title, text = passage.get("title"), passage["text"]
        if title is not None and not isinstance(title, str):
            raise BadRowError(f"the `title` of a passage of `{column}` must be text, not {type_name(title)}")
        if not f"{title or ''}{text}".strip():
            raise BadRowError(f"a passage of `{column}` is empty")
        score = passage.get("ce_score")
        whole = check_characters(text if title is None else f"{title} {text}", column)
        passages.append((whole, None if score is None else number_of(score)))
    return passages


def _transpose(columns: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A struct of lists, as older Arrow files store a list of structs, as that list."""
    if not all(isinstance(values, list) for values in columns.values()) or len(set(map(len, columns.values()))) > 1:
        raise BadRowError(f"`{name}` must be a list of passages, not one of them")
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]


def _nli_label(value: object) -> str:
    label = str("" if value is None else value).strip().lower()
    label = NLI_LABELS.get(label, label)
    if label not in NLI_LABELS.values():
        raise BadRowError(f"`label` must be entailment, neutral or contradiction (0, 1, 2), not {value!r}")
    return label


def _number_in(column: str) -> int:
    return int(re.sub(r"\D", "", column))


def _explain_missing(roles: list[str], columns: tuple[str, ...]) -> str:
    parts = []
    for role in roles:
        meant = _nearest_column(role, columns, 0.7)
        ids = next((name for name in columns if name in ID_ROLES[ID_ROLE_OF[role]]), None)
        hint = f" (is `{meant}` a misspelt `{role}`?)" if meant else ""
        if ids is not None and not meant:
            key = "queries" if role == "query" else "corpus"
            hint = f" (`{ids}` holds ids: name their texts with `{key}` in the data set's entry)"
        parts.append(f"`{role}`{hint}")
    return f"there is no column {' and no '.join(parts)} among {', '.join(f'`{name}`' for name in columns)}"


def _refuse_misspelt_columns(layout: Layout, columns: tuple[str, ...]) -> None:
    """A misspelt optional column would silently lose data, such as `negatve`."""
    if layout.shape != "triple":
        return
    unused = tuple(name for name in columns if name not in layout.roles.values())
    for role in ("negative", "score", "instruction"):
        if role not in layout.roles and not (role == "negative" and layout.numbered_negatives):
            meant = _nearest_column(role, unused, 0.85)
            if meant:
                raise BadRowError(f"column `{meant}` is not known, is it a misspelt `{role}`?")


def _nearest_column(role: str, columns: tuple[str, ...], likeness: float) -> str | None:
    known = {name for names in (*ROLES.values(), *ID_ROLES.values()) for name in names}
    unknown = [name for name in columns if name not in known]
    return nearest(role, unknown, likeness)
