"""How a merged checkpoint is used: as its parts are, which must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..model.embedding_config import EmbeddingConfig
from ..model.mask_token import MaskedTokenRecord
from .plan import Merge


Record = EmbeddingConfig | MaskedTokenRecord

ADDED_UP = ("instructions", "symmetric_tasks")  # tasks of any part are tasks of the whole
PLACES = ("base_model", "merged_adapters")  # of no meaning for full weights


def merge_records(merge: Merge) -> list[Record]:
    """The records of the merged checkpoint."""
    merged = []
    for kind in (EmbeddingConfig, MaskedTokenRecord):
        records = [kind.find([checkpoint]) for checkpoint in merge.checkpoints]
        present = [record for record in records if record is not None]
        if not present:
            continue
        if len(present) < len(records):
            odd = merge.checkpoints[records.index(None)]
            raise ValueError(f"{odd} is not {kind.described_as}, and others are: merge checkpoints of one kind.")
        merged.append(_merge_records(present, merge))
    return merged


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
