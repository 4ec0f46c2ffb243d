"""An adapter in LLM2Vec's names on a causal language model, against the hidden states that LLM2Vec had with it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from attention_patch import patch_attention
from llamafactory_embed.loading.llm2vec_adapters import ModuleNames, adapter_for_causal_lm
from llamafactory_embed.model.packed import find_decoder, forward_packed, pack_texts
from tests.golden.case_files import GoldenCase, golden_cases


def load_model(case: GoldenCase, folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(case.copy_model(folder)).eval()


def load_adapter(case: GoldenCase, folder: Path) -> PeftModel:
    """The case's adapter on the causal language model, under whose names it was converted."""
    case.part("lora")
    model = load_model(case, folder / "model")
    modules = ModuleNames.of_config(AutoConfig.from_pretrained(folder / "model"))
    adapter = adapter_for_causal_lm(case.folder_of("adapter"), modules, folder / "converted")
    assert Path(adapter).parent == folder / "converted"
    return PeftModel.from_pretrained(model, adapter).eval()


def first_row(case: GoldenCase) -> list[int]:
    """The real tokens of the first row of the first sub-case."""
    subcase = case.data["subcases"][0]
    tokens = subcase["input_ids"][0]
    return list(itertools.compress(tokens, subcase["attention_mask"][0])) if "attention_mask" in subcase else tokens


@golden_cases("llm2vec/mntp")
@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
@torch.no_grad()
def test_hidden_states(case: GoldenCase, merged: bool, tmp_path: Path) -> None:
    model = load_adapter(case, tmp_path)
    backbone = model.merge_and_unload() if merged else model
    patch_attention(backbone, "bidirectional")
    (states,) = forward_packed(find_decoder(backbone), pack_texts([first_row(case)])[0])
    expected = torch.tensor(case.data["lora"]["expected_on_first_subcase"]["last_hidden_state_after_merge_row0"])
    torch.testing.assert_close(states, expected, atol=case.data["tolerance"]["atol"], rtol=1e-4)


@golden_cases("llm2vec/mntp")
@torch.no_grad()
def test_loss_of_masked_tokens(case: GoldenCase, tmp_path: Path) -> None:
    model = load_adapter(case, tmp_path)
    patch_attention(model, "bidirectional")
    subcase, expected = case.data["subcases"][0], case.data["lora"]["expected_on_first_subcase"]
    inputs = {name: torch.tensor(subcase[name]) for name in ("input_ids", "attention_mask") if name in subcase}
    logits = model(**inputs).logits[:, :-1]  # [B, L - 1, V]: one to the left
    labels = torch.tensor(subcase["labels"])[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
    torch.testing.assert_close(losses, torch.tensor(expected["cross_entropy"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses.mean(), torch.tensor(expected["loss"]), atol=1e-4, rtol=1e-4)


@golden_cases("llm2vec/mntp")
def test_all_parameters_are_found(case: GoldenCase, tmp_path: Path) -> None:
    model = load_adapter(case, tmp_path)
    parameters = {name: each for name, each in model.named_parameters() if "lora_" in name}
    assert len(parameters) == case.data["lora"]["number_of_lora_tensors"]
    assert sum(each.numel() for each in parameters.values()) == case.data["lora"]["number_of_lora_parameters"]
    assert all(each.any() for each in parameters.values())  # a B that was not found would be zero
