"""The comparison with llm2vec computes on our side what it says; the other side has an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from attention_patch import patch_attention
from benchmarks import mntp_steps, mntp_vs_llm2vec
from benchmarks.mntp_vs_llm2vec import Settings, save_llama, write_batches
from benchmarks.processes import Variant, run_fresh
from llamafactory_embed.loading.llm2vec_adapters import ModuleNames, save_as_llm2vec


SETTINGS = Settings(
    layers=2, hidden_size=32, intermediate_size=48, heads=4, vocabulary=500, rows=3, length=20, steps=2
)


@pytest.fixture
def request_of_both(tmp_path: Path) -> dict[str, Any]:
    paths = {
        "model": save_llama(tmp_path / "model", SETTINGS),
        "batches": write_batches(tmp_path / "b.json", SETTINGS),
    }
    return dataclasses.asdict(SETTINGS) | {name: str(path) for name, path in paths.items()}


def test_our_first_loss_is_that_of_all_logits(request_of_both: dict[str, Any]) -> None:
    found = mntp_steps.ours(request_of_both)
    model = AutoModelForCausalLM.from_pretrained(request_of_both["model"])
    patch_attention(model)
    batch = json.loads(Path(request_of_both["batches"]).read_text("utf-8"))[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(batch["input_ids"])).logits[:, :-1]
    labels = torch.tensor(batch["labels"])[:, 1:]
    expected = cross_entropy(logits[labels != -100], labels[labels != -100])
    assert found["first_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert len(found["losses"]) == SETTINGS.steps


def test_the_other_environment_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM2VEC_PYTHON", raising=False)
    with pytest.raises(ValueError, match="Set `LLM2VEC_PYTHON`"):
        mntp_vs_llm2vec.measure(SETTINGS, 1, tmp_path)


needs_llm2vec = pytest.mark.skipif(
    "LLM2VEC_PYTHON" not in os.environ, reason="LLM2VEC_PYTHON names no environment with llm2vec"
)


@needs_llm2vec
def test_llm2vec_computes_the_same(tmp_path: Path) -> None:
    """`measure` refuses to compare different losses."""
    result = mntp_vs_llm2vec.measure(SETTINGS, 1, tmp_path)
    ours, theirs = (run["losses"] for run in result.runs)
    assert ours == pytest.approx(theirs, abs=1e-4)


@needs_llm2vec
def test_llm2vec_loads_our_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    """From the folder that `save_as_llm2vec` writes, with the hidden states that it gives here."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    modules = ModuleNames.of_model(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    settings = {"pooling_mode": "weighted_mean", "max_length": 77}
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    save_as_llm2vec(tmp_path / "adapter", tmp_path / "llm2vec", modules, settings, tokenizer)
    tokens = list(range(3, 20))
    patch_attention(adapted)
    with torch.no_grad():
        expected = adapted.get_base_model().base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    base = for_old_transformers(tiny_llama, tmp_path / "base")
    request = {"model": str(base), "adapter": str(tmp_path / "llm2vec"), "tokens": tokens}
    found = run_fresh(Variant("benchmarks.mntp_steps:their_states", request, os.environ["LLM2VEC_PYTHON"]))
    torch.testing.assert_close(torch.tensor(found["states"]), expected, atol=1e-5, rtol=1e-5)
    assert (found["pooling"], found["max_length"]) == ("weighted_mean", 77)


def for_old_transformers(model: Path, folder: Path) -> Path:
    """A copy whose tokenizer is written as it was in the days of transformers 4.44."""
    shutil.copytree(model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder
