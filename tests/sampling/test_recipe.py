"""Recipes with `do_predict: true`, from the YAML's keys to the file, with a model that knows one text by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train.tuner import run_exp

from tests.sampling.memory import TEXT, memorize


pytestmark = pytest.mark.usefixtures("single_process")
STARTS = ("To be prepared", "To be")  # cut between tokens


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The memorized text as a document, and in halves as prompt and answer."""
    texts = [{"text": TEXT}] * 3
    pairs = [{"instruction": f"<s>{start}", "output": TEXT.removeprefix(start)} for start in STARTS]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    info = {
        "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}},
        "pairs": {"file_name": "pairs.jsonl", "columns": {"prompt": "instruction", "response": "output"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return tmp_path


def predict(data: Path, output: Path, **options: Any) -> tuple[list[dict[str, str]], dict[str, float]]:
    run_exp(
        {
            "model_name_or_path": str(memorize(True)),
            "finetuning_type": "full",
            "do_predict": True,
            "dataset_dir": str(data),
            "cutoff_len": 64,
            "max_new_tokens": 36,
            "diffusion_steps": 36,
            "do_sample": False,
            "output_dir": str(output),
            "overwrite_cache": True,
            "report_to": "none",
            "use_cpu": True,
        }
        | options
    )
    lines = (output / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((output / "predict_results.json").read_text("utf-8"))


@pytest.mark.parametrize("task", ["prompt", "unconditional", "infilling"])
def test_documents(task: str, data: Path, tmp_path: Path) -> None:
    options = {"stage": "ddm", "eval_dataset": "texts", "predict_task": task, "prompt_tokens": 5, "gap_tokens": 7}
    lines, metrics = predict(data, tmp_path / "out", **options, denoising_pictures=1)
    assert len(lines) == 3
    for line in lines:
        if task == "prompt":
            assert line["prompt"].removeprefix("<s>") + line["predict"] == TEXT
        else:
            assert line["predict"] == TEXT
    assert metrics.get("predict_exact_match") == (None if task == "unconditional" else 100)
    assert metrics["predict_samples"] == 3
    assert (tmp_path / "out" / "denoising_0.gif").is_file()


def test_answers(data: Path, tmp_path: Path) -> None:
    options = {"stage": "ddm-sft", "eval_dataset": "pairs", "template": "empty", "confidence_threshold": 0.9}
    lines, metrics = predict(data, tmp_path / "out", **options, block_length=8, sampling_cache="dual")
    assert [line["prompt"].removeprefix("<s>") + line["predict"] for line in lines] == [TEXT, TEXT]
    assert [line["label"] for line in lines] == [TEXT.removeprefix(start) for start in STARTS]
    assert metrics["predict_exact_match"] == 100
    assert metrics["predict_forwards"] < 36
    assert metrics["predict_tokens_per_second"] > 0


def test_refused_options(data: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"diffusion_steps": 0}, "`diffusion_steps` must be at least 1"),
        ({"sampling_cache": "dual"}, "`sampling_cache: dual` works block by block: set `block_length`"),
        ({"cache_refresh_steps": 2}, "`cache_refresh_steps` needs a `sampling_cache`"),
        ({"confidence_threshold": 0.9, "confidence_factor": 1.0}, "not both"),
        ({"confidence_threshold": 0.9, "sampling_algorithm": "entropy"}, "needs probabilities"),
        ({"sampling_algorithm": "maskgit"}, "did you mean `maskgit_plus`"),
        ({"max_new_tokens": 0, "max_length": 0}, "`max_new_tokens` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            predict(data, tmp_path / "out", **{"stage": "ddm", "eval_dataset": "texts"} | changes)
