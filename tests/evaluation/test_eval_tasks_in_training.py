"""`eval_tasks` in a training recipe: the scores that the command gives for the checkpoint, and the same training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from llamafactory.train.tuner import run_exp
from safetensors.torch import load_file

from tests.e2e.contrastive_runs import LORA, recipe, write_data
from tests.two_ranks import forked_ranks


@pytest.fixture(autouse=True)
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "USE_RAY"):
        monkeypatch.delenv(name, raising=False)


def test_the_finished_model_is_judged(
    tiny_llama: Path, beir: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    data, output = write_data(tmp_path / "data"), tmp_path / "runs" / "judged"
    options = recipe(tiny_llama, data, output, eval_tasks=[str(beir), "nouns_heldout"], seed=7, **LORA)
    run_exp(dict(options))
    results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    found = {name: results[f"eval_{name}_ndcg_at_10"] for name in ("following_lines", "nouns_heldout")}
    assert all(0 < score <= 1 for score in found.values())
    assert f"| following_lines_ndcg_at_10 | {found['following_lines']:.4f} |" in (output / "README.md").read_text()

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    assert command("eval", path, "--output", tmp_path / "out")[0] == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    again = {line["task"]: line["scores"]["runs/judged"] for line in summary["scores"][:2]}
    assert again == pytest.approx(found, abs=1e-5)

    plain = tmp_path / "runs" / "plain"
    run_exp(recipe(tiny_llama, data, plain, seed=7, **LORA))
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (output, plain))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_misspelt_task_is_refused_before_anything_is_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    options = recipe(tmp_path / "no model", write_data(tmp_path / "data"), tmp_path / "out", eval_tasks=["SciFatc"])
    with pytest.raises(ValueError, match=r"`eval_tasks`: SciFatc .*did you mean `SciFact`\?"):
        run_exp(options)


@pytest.mark.process
def test_the_other_ranks_wait_until_one_has_judged(tmp_path: Path) -> None:
    forked_ranks("tests.evaluation.two_rank_judging", tmp_path)
