"""The benchmark of rows plans what it says, from rows that it wrote; its second start finds them prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from llamafactory_embed.data.retrieval import prepared, reader
from llamafactory_embed.data.retrieval.entries import Entry


@pytest.mark.parametrize("kind", ["shared negatives", "own texts"])
def test_rows_are_prepared_once_and_planned(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_KEPT", 10_000)  # less than the rows, more than the first of them
    place = tmp_path / "rows"
    rows.write_rows(place, kind, 60, 3, characters=350)
    request = {"folder": str(place), "drawn": 1, "batch": 8, "processes": 1}
    first = rows.start(request)
    records_of_entry = reader.records_of_entry
    monkeypatch.setattr(reader, "records_of_entry", lambda entry, *more: few_records(records_of_entry, entry, *more))
    later = rows.start(request)
    assert first["batches"] == later["batches"]
    assert 6 <= later["batches"] <= 7
    (table,) = (place / "cache" / prepared.FOLDER).glob("*/rows.arrow")
    assert table.stat().st_size > 60 * 4 * 350


def few_records(read: Callable[..., Any], entry: Entry, *more: Any) -> Any:
    """All that a second start reads from a file: the rows that it warms up with."""
    assert "few" in entry.location, f"{entry.location} was read again"
    return read(entry, *more)
