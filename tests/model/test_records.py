"""What a checkpoint keeps beside its weights: written whole, read back, refused where it is not understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_embed.model.mask_token import MaskedTokenRecord
from llamafactory_embed.model.records import CheckpointRecord
from llamafactory_embed.train.embed.word_task.record import WordTaskRecord
from tests.embedders import make_config


RECORDS: list[CheckpointRecord] = [
    make_config(instructions={"next_line": "Suche die nächste Zeile"}, matryoshka_dims=[8, 16]),
    MaskedTokenRecord("<mask>", 300, shift=True, merged_adapters=("one", "two")),
    WordTaskRecord("ner", ["O", "B-PER"], "causal", "keep", "none", True, True, "base", ["one"]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record: CheckpointRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [record.file_name]
    assert type(record).load(tmp_path) == record
    assert type(record).find([tmp_path / "nowhere", tmp_path]) == record
    assert type(record).find([tmp_path / "nowhere"]) is None


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_not_understood_is_refused(record: CheckpointRecord, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"is not a checkpoint of .*: it holds no {record.file_name}"):
        type(record).load(tmp_path)
    record.save(tmp_path)
    path = tmp_path / record.file_name
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(values | {"of_tomorrow": 1}), "utf-8")
    with pytest.raises(ValueError, match="has the key `of_tomorrow`, which this release does not know"):
        type(record).load(tmp_path)
    first = next(iter(values))
    path.write_text(json.dumps({name: each for name, each in values.items() if name != first}), "utf-8")
    with pytest.raises(ValueError, match=f"lacks the key `{first}`"):
        type(record).load(tmp_path)
