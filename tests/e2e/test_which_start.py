"""scripts/which_start.py: starts are treated alike, nothing runs twice, tables are the means of the runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tiny_models import save_tiny_model
from tests.two_ranks import REPOSITORY


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import which_start

    return which_start


@pytest.fixture
def page(script: ModuleType) -> ModuleType:
    import which_start_page

    return which_start_page


def arguments_of(script: ModuleType, folder: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "output": folder / "runs", "results": folder / "results.json", "model": folder / "model", "layers": 1,
        "steps": 2, "batch_size": 2, "adaptation_steps": 2, "adaptation_rows": 2, "learning_rate": 1e-3, "rows": 4,
        "queries": 3, "poolings": script.POOLINGS, "without_controls": False,
    }  # fmt: skip
    return argparse.Namespace(**(values | changes))


def test_starts_of_one_pooling_differ_in_what_they_start_from_and_in_attention(
    script: ModuleType, tmp_path: Path
) -> None:
    arguments = arguments_of(script, tmp_path)
    cells = list(script.grid(1))
    assert len({cell.name for cell in cells}) == len(cells) == 15
    recipes = [script.contrastive_recipe(arguments, cell, tmp_path, tmp_path, tmp_path) for cell in cells]
    for cell, recipe in zip(cells, recipes, strict=True):
        assert recipe["attention"] == ("causal" if cell.start == "causal" else "bidirectional")
        mean = recipes[0] | {"attention": recipe["attention"], "pooling": cell.pooling}
        assert {key: recipe[key] for key in mean} == mean
    trained = [script.adaptation_recipe(arguments, name, 1, tmp_path) for name in script.ADAPTATIONS]
    shared = {key: trained[0][key] for key in trained[-1] if key != "stage"}
    assert all({key: each[key] for key in shared} == shared for each in trained)


def test_a_cell_is_run_once_and_its_adaptation_too(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def pretend(function: Any, recipe: Path, *rest: Path, log: Path) -> None:
        ran.append(recipe.stem)
        output = log.with_suffix("")
        output.mkdir()
        (output / "trainer_state.json").write_text('{"log_history": [{"loss": 2.0}, {"eval": 1}]}', "utf-8")
        if rest:
            rest[-1].write_text('{"example": {"float32": 0.5}}', "utf-8")

    monkeypatch.setattr(script, "NEEDED", ())
    monkeypatch.setattr(script, "in_own_process", pretend)
    monkeypatch.setattr(script, "prepare_smollm2", lambda folder, layers: folder)
    monkeypatch.setattr(script, "write_data", lambda folder, *sizes: folder)
    arguments = arguments_of(script, tmp_path, seeds=[1, 2], packages=tmp_path, times=2)
    script.run_grid(arguments)
    first = list(ran)
    assert len(first) == len(set(first)) == 2 * (15 + 4 + 4)
    assert all(name.endswith("-1") for name in first[:18])
    script.run_grid(arguments)
    assert ran == first
    cells = json.loads(arguments.results.read_text("utf-8"))["cells"]
    assert cells["ddm-last-2"]["ndcg@10"] == {"example": {"float32": 0.5}}
    assert not (arguments.output / "ddm-last-2").exists()
    with pytest.raises(ValueError, match=r"was made with .*'steps': 2"):
        script.read_results(arguments_of(script, tmp_path, steps=3))


def test_the_tables_are_means_over_tasks_and_seeds(page: ModuleType, tmp_path: Path) -> None:
    def cell(start: str, pooling: str, seed: int, score: float) -> dict[str, Any]:
        tasks = {"example": score, "gloss": score + 0.2, "amazon": score / 2}
        found = {task: dict.fromkeys(("float32", "int8", "binary"), value) for task, value in tasks.items()}
        return {"start": start, "pooling": pooling, "seed": seed, "ndcg@10": found}

    cells = [cell("block_ddm", pooling, seed, 0.1 * seed) for seed in (1, 3) for pooling in ("mean", "last")]
    results = {"cells": {str(number): each for number, each in enumerate([*cells, cell("control", "mean", 1, 0.6)])}}
    (tmp_path / "some.json").write_text(json.dumps(results), "utf-8")
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- results: some -->\nold\n<!-- end -->\nafter\n", "utf-8")
    page.write_page(path, tmp_path)
    text = path.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| block ddm | 0.300 ± 0.141 | 0.300 ± 0.141 |  |" in text
    assert "| block ddm | 0.100 ± 0.071 | 0.100 ± 0.071 |  |" in text
    assert "| control | 0.700 | 0.700 | 0.700 |" in text
    assert "| control | 0.700 |  |" not in text
    page.write_page(path, tmp_path)
    assert path.read_text("utf-8") == text


def test_a_cell_for_real(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask pooling trained from a tiny model, and judged in three precisions."""
    monkeypatch.setattr(script, "MASK", "_")
    data = tmp_path / "data"
    data.mkdir()
    info = {}
    for task in ("example", "gloss", "amazon"):
        for name in (task, f"{task}_heldout"):
            rows = [{"query": f"{name} {n}", "positive": f"answer {n}", "negative": []} for n in range(6)]
            (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            info[name] = {"file_name": f"{name}.jsonl", "formatting": "retrieval", "task": task}
    (data / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    arguments = arguments_of(script, tmp_path, model=save_tiny_model(tmp_path / "model"))
    output, found, recipe = tmp_path / "cell", tmp_path / "found.json", tmp_path / "recipe.yaml"
    cell = script.Cell("causal", "mask", 1, "causal")
    values = script.contrastive_recipe(arguments, cell, arguments.model, data, output)
    recipe.write_text(script.yaml.safe_dump(values), "utf-8")
    script.train_and_judge(recipe, output, data, found)
    tasks = json.loads(found.read_text("utf-8"))
    assert set(tasks) == {"example", "gloss", "amazon"}
    for scores in tasks.values():
        assert set(scores) == {"float32", "int8", "binary"}
        assert all(0 < each <= 1 for each in scores.values())
        assert abs(scores["float32"] - scores["int8"]) < 0.2
