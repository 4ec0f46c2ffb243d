"""Weight files against those of tDRO, which reads ours as we read its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafactory_embed.data.retrieval.weights import task_shares
from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.tdro.task_weights import (
    TaskWeights,
    WeightTable,
    start_weights,
    weight_tables,
    write_weight_files,
)
from tests.golden.case_files import GoldenCase, golden_cases


def tables_of(subcase: dict[str, Any], percents: list[int]) -> dict[str, WeightTable]:
    weights = TaskWeights(subcase["curr"], TdroOptions())
    weights.mean, weights.moving_average = (torch.tensor(subcase[name]) for name in ("mean", "ema"))
    tasks = subcase["domain_names_in_group_order"]
    return weight_tables(tasks, [subcase["sizes"][task] for task in tasks], weights, percents)


@golden_cases("tdro/export")
def test_tables(case: GoldenCase) -> None:
    tolerance = case.data["tolerance"]["rtol"]
    for subcase in case.data["subcases"]:
        found = tables_of(subcase, case.data["percentages"])
        assert found.keys() == subcase["expected_files"].keys()
        for name, wanted in subcase["expected_files"].items():
            table = found[name]
            assert table.keys() == wanted.keys()
            assert list(table["domain_ids"].items()) == list(wanted["domain_ids"].items()), name
            assert table["size"] == wanted["size"], name
            for key in ("domain_weights", "epoch"):
                assert list(table[key]) == list(wanted[key]), name
                assert table[key] == pytest.approx(wanted[key], rel=tolerance), name


@golden_cases("tdro/export")
def test_files_of_either_side_are_read(case: GoldenCase, tmp_path: Path) -> None:
    tolerance = case.data["tolerance"]["rtol"]
    for subcase in case.data["subcases"]:
        tasks = subcase["domain_names_in_group_order"]
        sizes = [subcase["sizes"][task] for task in tasks]
        ours, theirs = tmp_path / subcase["id"] / "ours", tmp_path / subcase["id"] / "theirs"
        ours.mkdir(parents=True)
        theirs.mkdir()
        write_weight_files(ours, tables_of(subcase, case.data["percentages"]))
        for name, wanted in subcase["expected_files"].items():
            (theirs / name).write_text(json.dumps(wanted), encoding="utf-8")
            if not wanted["domain_ids"]:
                assert not (ours / name).exists()  # nothing could be trained on an empty file
                continue
            shares = task_shares(str(theirs / name), tasks, sizes)
            assert shares is not None
            assert sum(shares) == pytest.approx(1)
            assert task_shares(str(ours / name), tasks, sizes) == pytest.approx(shares, rel=tolerance)
        if "curr_weights.json" not in subcase["expected_files"]:
            continue
        assert start_weights(str(theirs / "curr_weights.json"), tasks) == pytest.approx(
            start_weights(str(ours / "curr_weights.json"), tasks), rel=tolerance
        )
