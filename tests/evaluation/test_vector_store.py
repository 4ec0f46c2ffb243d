"""Vectors on disk: each text is embedded once, whatever is repeated, interrupted or left behind by a crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llamafactory_embed.evaluation.vector_store import DigestIndex, VectorStore, digest_texts


SIZE = 5
TEXTS = [f"text {number}" for number in range(40)]


def vector_of(text: str) -> np.ndarray:
    return np.random.default_rng(int(digest_texts([text])[0, 0] % 2**32)).normal(size=SIZE).astype(np.float32)


class CountingModel:
    """Knows what it was asked, and may break down."""

    def __init__(self, breaks_after: int = 10**9) -> None:
        self.asked: list[str] = []
        self.breaks_after = breaks_after

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if len(self.asked) >= self.breaks_after:
            raise KeyboardInterrupt
        self.asked += texts
        return np.stack([vector_of(text) for text in texts])


def open_store(folder: Path) -> VectorStore:
    return VectorStore(folder, SIZE, {"role": "query", "instruction": "find"})


def test_every_text_is_embedded_once_and_found_where_it_stands(tmp_path: Path) -> None:
    store, model = open_store(tmp_path), CountingModel()
    order = [*TEXTS[:9], *TEXTS[3:12], TEXTS[0]]
    rows = store.rows(order, model, window=4)
    np.testing.assert_array_equal(store.vectors[rows], [vector_of(text) for text in order])
    rows = store.rows(TEXTS, model, window=7)
    np.testing.assert_array_equal(store.vectors[rows], [vector_of(text) for text in TEXTS])
    assert sorted(model.asked) == sorted(TEXTS)
    store.close()

    again = CountingModel(breaks_after=0)
    rows = open_store(tmp_path).rows(TEXTS[::-1], again, window=7)
    np.testing.assert_array_equal(store.vectors[rows], [vector_of(text) for text in TEXTS[::-1]])


def test_what_was_embedded_before_an_interruption_is_not_embedded_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.rows(TEXTS, CountingModel(breaks_after=20), window=10)
    store.close()
    model = CountingModel()
    store = open_store(tmp_path)
    rows = store.rows(TEXTS, model, window=10)
    assert model.asked == TEXTS[20:]
    np.testing.assert_array_equal(store.vectors[rows], [vector_of(text) for text in TEXTS])


@pytest.mark.parametrize("file", ["keys.bin", "vectors.bin"])
@pytest.mark.parametrize("lost", [1, 37])
def test_half_written_files_are_cut_to_what_is_whole(file: str, lost: int, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.rows(TEXTS, CountingModel(), window=40)
    store.close()
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:-lost])
    store, model = open_store(tmp_path), CountingModel()
    rows = store.rows(TEXTS, model, window=40)
    assert 0 < len(model.asked) <= 3
    np.testing.assert_array_equal(store.vectors[rows], [vector_of(text) for text in TEXTS])


def test_digests_are_found_in_whatever_portions_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = digest_texts([str(number) for number in range(20_000)])
    sorted_again = 0
    argsort = np.ndarray.argsort

    class Counted(np.ndarray):
        def argsort(self, *arguments: object, **options: object) -> np.ndarray:
            nonlocal sorted_again
            sorted_again += len(self)
            return argsort(np.asarray(self), *arguments, **options)  # type: ignore[arg-type]

    index, end = DigestIndex(), 0
    for portion in [*[1] * 50, 700, 0, *[10] * 1925]:
        index.add(digests[end : end + portion].view(Counted))
        end += portion
    assert end == len(digests)
    order = np.random.default_rng(0).permutation(end)
    np.testing.assert_array_equal(index.find(digests[order]), order)
    assert (index.find(digest_texts(["none", "of them"])) == -1).all()
    assert (DigestIndex().find(digests[:3]) == -1).all()
    assert sorted_again < end * np.log2(end)  # 2,000 portions, sorted anew each time, would be 1,000 times all


def test_keys_that_agree_in_their_first_half_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collide(texts: Sequence[str]) -> np.ndarray:
        return np.array([[7, int(text)] for text in texts], dtype=np.uint64)

    monkeypatch.setattr("llamafactory_embed.evaluation.vector_store.digest_texts", collide)
    store = open_store(tmp_path)
    store._append(collide(["1"]), np.full((1, SIZE), 1.0))
    assert store._rows_of.find(collide(["1"])).tolist() == [0]
    assert store._rows_of.find(collide(["2"])).tolist() == [-1]


def test_two_runs_do_not_write_to_one_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="`vectors`: another run is writing to"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_vectors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="embeddings hold nan or inf"):
        store.rows(TEXTS, lambda texts: np.full((len(texts), SIZE), np.nan), window=8)
