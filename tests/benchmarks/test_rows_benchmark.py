"""The benchmark of rows plans what it says, from rows that it wrote; its second start finds them prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rows
from llamafactory_embed.data.retrieval import prepared, reader


@pytest.mark.parametrize("kind", rows.Settings().kinds)
def test_rows_are_prepared_once_and_planned(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_KEPT", 10_000)  # less than the rows, more than the first of them
    place = tmp_path / "rows"
    rows.write_rows(place, kind, 60, rows.Settings(negatives=3))
    request = {"folder": str(place), "drawn": 1, "batch": 8}
    first = rows.start(request)
    monkeypatch.setattr(reader, "records_of_entry", lambda entry, *_: iter(read_first_row(place)))
    later = rows.start(request)
    assert first["batches"] == later["batches"]
    assert 6 <= later["batches"] <= 7
    (table,) = (place / "cache" / prepared.FOLDER).glob("*/rows.arrow")
    assert table.stat().st_size > 60 * 4 * 350


def read_first_row(place: Path) -> list[tuple[str, int, dict[str, str]]]:
    """All that a second start reads from a file: the row that it warms up with."""
    assert (place / "few" / "rows.jsonl").is_file()
    return [("rows.jsonl", 1, {"query": "a", "positive": "b", "negative": "c"})]
