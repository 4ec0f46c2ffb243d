"""Two ranks predict what one process predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llamafactory.train.tuner import run_exp

from tests.sampling.memory import TEXT, memorize
from tests.two_ranks import forked_ranks


pytestmark = [pytest.mark.process, pytest.mark.usefixtures("single_process")]


def results(output: Path) -> tuple[str, dict[str, float]]:
    """The file's content, and the metrics."""
    assert not list(output.glob("*.part"))
    metrics = json.loads((output / "predict_results.json").read_text("utf-8"))
    return (output / "generated_predictions.jsonl").read_text("utf-8"), metrics


def test_two_ranks_predict_as_one_process(tmp_path: Path) -> None:
    words = TEXT.split()
    rows = [{"text": " ".join(words[start:])} for start in range(5)]  # of several lengths, and an odd number of them
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    info = {"texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    recipe = {
        "model_name_or_path": str(memorize(True)),
        "stage": "ddm",
        "do_predict": True,
        "finetuning_type": "full",
        "dataset_dir": str(tmp_path),
        "eval_dataset": "texts",
        "prompt_tokens": 4,
        "cutoff_len": 64,
        "max_new_tokens": 12,
        "diffusion_steps": 6,
        "temperature": 1.5,  # with chance, so that the rows' own numbers matter
        "top_p": 1.0,
        "per_device_eval_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"output_dir": str(tmp_path / "two")}), "utf-8")
    forked_ranks("tests.sampling.rank_run", tmp_path / "recipe.json")
    run_exp(recipe | {"output_dir": str(tmp_path / "one")})
    (one, metrics), (two, metrics_of_two) = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one.splitlines()) == 5
    assert two == one
    for name in ("predict_samples", "predict_exact_match"):
        assert metrics_of_two[name] == metrics[name]
