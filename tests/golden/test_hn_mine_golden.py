"""Hard negatives and duplicate queries against the numbers of tDRO."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed.mining.dedup.matchers import FingerprintTable, SimHashMatcher, hamming_distance, simhash
from llamafactory_embed.mining.search import IndexSettings, merge, search_shard
from llamafactory_embed.mining.selector import candidates_in_window, sample
from tests.mining.helpers import on_disk

from .case_files import GoldenCase, golden_cases


pytest.importorskip("faiss")


def rank(mining: dict[str, Any], shards: int, folder: Path) -> np.ndarray:
    """The ranking of the case's passages, searched in so many shards."""
    queries, passages = (on_disk(np.array(mining[f"{kind}_embeddings"]), folder, kind) for kind in ("query", "corpus"))
    edges = np.linspace(0, len(passages), shards + 1).astype(int).tolist()
    found = [
        search_shard(queries, passages, start, stop, mining["topk"], IndexSettings())
        for start, stop in itertools.pairwise(edges)
        if start < stop  # more shards than passages
    ]
    return merge(found, mining["topk"])


@golden_cases("tdro/hn_mine")
@pytest.mark.parametrize("shards", [1, 3])
def test_rankings(case: GoldenCase, shards: int, tmp_path: Path) -> None:
    mining = case.part("hard_negatives")
    found = rank(mining, shards, tmp_path)
    for each in mining["expected"]:
        ranking = found[each["query"]]
        # Places that no passage fills come last. They hold -1, in the case perhaps nothing, and have no score.
        filled = int((ranking["passage"] >= 0).sum())
        assert filled == min(mining["topk"], len(mining["corpus_embeddings"]))
        assert ranking["passage"][:filled].tolist() == each["ranking"][:filled]
        assert {*ranking["passage"][filled:].tolist(), *each["ranking"][filled:]} <= {-1}
        np.testing.assert_allclose(ranking["score"][:filled], each["scores"][:filled], atol=1e-5, rtol=1e-5)


@golden_cases("tdro/hn_mine")
def test_candidates(case: GoldenCase) -> None:
    mining = case.part("hard_negatives")
    first, last = mining["depth"]
    for each in mining["expected"]:
        ranking = np.array(each["ranking"])
        places = candidates_in_window(ranking, first, last, each["positives"])
        assert ranking[places].tolist() == each["candidates_before_sampling"]
        drawn = sample(len(places), mining["n_sample"], "random", random.Random(each["query"]))
        assert len(set(drawn)) == len(drawn) == each["number_after_sampling"]
        assert set(drawn) <= set(range(len(places)))
        assert sample(len(places), len(places) + 1, "random", random.Random(0)) == list(range(len(places)))


@golden_cases("tdro/hn_mine")
def test_fingerprints(case: GoldenCase) -> None:
    strings = case.part("simhash")
    for each in (*strings["test_strings"], *strings["train_strings"]):
        assert f"{simhash(each['formatted']):016x}" == each["simhash_hex"]
        assert f"{simhash(each['string']):016x}" == each["simhash_hex"], "split or not, words are the same letters"


@golden_cases("tdro/hn_mine")
def test_distances_and_duplicates(case: GoldenCase) -> None:
    strings = case.part("simhash")
    test = [int(each["simhash_hex"], 16) for each in strings["test_strings"]]
    train = [int(each["simhash_hex"], 16) for each in strings["train_strings"]]
    distances = [[hamming_distance(one, other) for other in test] for one in train]
    assert distances == strings["hamming_distance_train_by_test"]
    for k in range(12):  # every one, the bound itself included
        table = FingerprintTable(k)
        for fingerprint in test:
            table.add(fingerprint)
        for row, fingerprint in zip(distances, train, strict=True):
            assert sorted(number for _, number in table.find(fingerprint)) == [
                number for number, distance in enumerate(row) if distance <= k
            ]


@golden_cases("tdro/hn_mine")
def test_kept_queries(case: GoldenCase) -> None:
    strings = case.part("simhash")
    matcher = SimHashMatcher(strings["k"])
    for each in strings["test_strings"]:
        matcher.add(each["string"])
    found = [matcher.find(each["string"]) for each in strings["train_strings"]]
    assert [number for number, match in enumerate(found) if match is None] == strings["expected_kept_train_strings"]
    for number, duplicates in strings["expected_duplicates_of_train_string"].items():
        match = found[int(number)]
        assert (match is None) == (not duplicates)
        assert match is None or match[0] in duplicates
