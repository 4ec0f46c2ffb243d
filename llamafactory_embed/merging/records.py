"""How a merged checkpoint is used: as its parts are, which must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.embedding_config import EmbeddingConfig
from ..model.mask_token import MaskedTokenRecord
from ..model.quantization import End, QuantizationRanges
from .plan import Merge


Record = EmbeddingConfig | MaskedTokenRecord | QuantizationRanges

ADDED_UP = ("instructions", "symmetric_tasks")  # tasks of any part are tasks of the whole
PLACES = ("base_model", "merged_adapters")  # of no meaning for full weights


def merge_records(merge: Merge) -> list[Record]:
    """The records of the merged checkpoint."""
    merged: list[Record] = []
    for kind in (EmbeddingConfig, MaskedTokenRecord):
        records = [kind.find([checkpoint]) for checkpoint in merge.checkpoints]
        present = [record for record in records if record is not None]
        if not present:
            continue
        if len(present) < len(records):
            odd = merge.checkpoints[records.index(None)]
            raise ValueError(f"{odd} is not {kind.described_as}, and others are: merge checkpoints of one kind.")
        merged.append(_merge_records(present, merge))
    return [*merged, *_merge_ranges(merge)]


def _merge_ranges(merge: Merge) -> list[QuantizationRanges]:
    """The widest ends of the parts, where all of them have ranges of the same sizes: numbers of a mean of weights lie
    between those of the parts as a rule, and those that do not become the nearer end."""
    found = [QuantizationRanges.find([checkpoint]) for checkpoint in merge.checkpoints]
    parts = [each for each in found if each is not None]
    if len({(each.unit_length, *sorted(each.ranges)) for each in parts}) != 1 or len(parts) < len(found):
        return []
    ranges: dict[str, list[End]] = {}
    for size in parts[0].ranges:
        ends = np.stack([each.of(int(size), each.unit_length) for each in parts])  # [parts, 2, size]
        ranges[size] = [ends[:, 0].min(axis=0).tolist(), ends[:, 1].max(axis=0).tolist()]
    return [QuantizationRanges(ranges, parts[0].unit_length, sum(each.texts for each in parts))]


def _merge_records(records: Sequence[Any], merge: Merge) -> Record:
    first = records[0]
    values = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)}
    for checkpoint, record in zip(merge.checkpoints[1:], records[1:], strict=True):
        for name, value in values.items():
            other = getattr(record, name)
            if name in ADDED_UP:
                values[name] = _add_up(name, value, other, checkpoint)
            elif name in PLACES and not merge.stays_adapter:
                continue
            elif other != value:
                raise ValueError(
                    f"`{name}` is {value!r} in {merge.checkpoints[0]} and {other!r} in {checkpoint}: checkpoints that "
                    "are used differently have no common mean."
                )
    if not merge.stays_adapter:
        values |= {"base_model": None, "merged_adapters": []}
    return type(first)(**values)


def _add_up(name: str, known: Any, other: Any, checkpoint: Path) -> Any:
    if not isinstance(known, dict):
        return list(dict.fromkeys([*known, *other]))
    odd = next((task for task in other if known.get(task, other[task]) != other[task]), None)
    if odd is not None:
        raise ValueError(
            f"The task `{odd}` has another instruction in {checkpoint}: make their {name} alike in "
            f"{EmbeddingConfig.file_name}."
        )
    return known | other
