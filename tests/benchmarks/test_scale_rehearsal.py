"""The rehearsal of scale does all of the work that it measures, on data as described. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scale_rehearsal
from benchmarks.scale_data import TOPICS, HashEmbedder, TextMaker, write_collection
from llamafactory_embed.mining import miner


pytest.importorskip("faiss")

SETTINGS = scale_rehearsal.Settings(queries=10, test_queries=20, dimension=16, memory_mb=64)


@pytest.mark.parametrize(
    ("measured", "steps"),
    [
        (scale_rehearsal.mine_flat, ["read", "embed", "search", "select", "start again"]),
        (scale_rehearsal.evaluate_in_training, ["all"]),
        (scale_rehearsal.evaluate_task, ["read", "embed and search", "search again"]),
        (scale_rehearsal.evaluate_words, ["index", "search"]),
        (scale_rehearsal.remove_duplicates, ["simhash", "minhash"]),
    ],
)
def test_every_step_is_done(
    measured: Callable[..., Any], steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner, "load_embedder", miner.load_embedder)  # put back after the test
    request = {"settings": dataclasses.asdict(SETTINGS), "folder": str(tmp_path), "size": 150}
    answer = json.loads(json.dumps(measured(request)))
    assert list(answer["steps"]) == steps
    assert all(step["seconds"] > 0 for step in answer["steps"].values())
    assert answer.get("recall@100", 1.0) == 1.0, "of 150 documents of as many topics, a query's own is among 100"


def test_growth_is_the_exponent_between_the_largest_sizes() -> None:
    runs = [
        {"case": "mine", "variant": name, "repeats": 0, "repeat": 0, "steps": {"read": {"seconds": seconds}}}
        for name, seconds in (("10", 7.0), ("100", 2.0), ("1000", 2.0 * 10**1.5))
    ]
    steps = [step for run in runs for step in scale_rehearsal._steps_of(run)]
    (figure,) = scale_rehearsal.growths(steps)
    assert figure.value == pytest.approx(1.5)
    assert not figure.reached


def test_texts_differ_and_lie_around_their_topics(tmp_path: Path) -> None:
    write_collection(tmp_path / "data", 50, 5)
    lines = (tmp_path / "data" / "corpus.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(set(texts)) == 50
    maker = TextMaker()
    own, others = ([maker.text(7 + step, "p", 3), maker.text(7, "q", 1)] for step in (TOPICS, 1))
    embedder = HashEmbedder(64)
    similarities = [float(a @ b) for a, b in map(embedder.embed, (own, others))]
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(texts), axis=1), 1, rtol=1e-6)
    assert similarities[0] > 0.4 > similarities[1]


@pytest.mark.parametrize(("largest", "sizes"), [("1000000", (4, 5, 6)), ("10000000", (4, 5, 6, 7)), ("5", ())])
def test_the_environment_names_the_largest_size(
    largest: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(scale_rehearsal.LARGEST, largest)
    assert scale_rehearsal.Settings().passages == tuple(10**each for each in sizes)
