"""Weights on disk: written and read in their own precision, converted, and refused where they do not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_embed.loading import pissa
from llamafactory_embed.loading.checkpoint import load_diffusion_model, load_embedding_model
from llamafactory_embed.loading.weights import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAME,
    load_backbone_weights,
    load_language_model,
    save_backbone,
    weights_must_fit,
)
from tests.embedders import make_config
from tests.tiny_models import save_tiny_model, tiny_model


TOKENS = torch.tensor([[0, 40, 41, 42, 43, 44]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=TOKENS).logits


# ------------------------------------------------ resuming ------------------------------------------------


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_weights_come_back_in_their_own_precision(family: str, shard_size: str, tmp_path: Path) -> None:
    """`finetuning_type: freeze` trains some layers in float32, the others stay in bfloat16."""

    def half_frozen(seed: int, factor: float) -> Any:
        model = tiny_model(family, seed).to(torch.bfloat16)
        for name, parameter in model.named_parameters():
            if ".1." in name:
                parameter.data = parameter.data.float() * factor
        return model

    model, other = half_frozen(0, 1.0001), half_frozen(1, 1.0)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").is_file() is (shard_size == "10GB")
    load_backbone_weights(other, tmp_path)
    expected = dict(model.named_parameters())
    assert {each.dtype for each in expected.values()} == {torch.float32, torch.bfloat16}
    for name, parameter in other.named_parameters():
        assert parameter.dtype == expected[name].dtype
        assert torch.equal(parameter, expected[name]), name


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_model("llama", intermediate_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mlp\.\w+_proj.weight` in .* has the shape \[.*but the model has \["):
        load_backbone_weights(tiny_model("llama"), tmp_path)


# ------------------------------------------------- PiSSA --------------------------------------------------


def with_pissa(family: str, seed: int, **options: Any) -> PeftModel:
    """A model as the host makes it, whose adapter has learned a little."""
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, init_lora_weights="pissa_niter_2", task_type="CAUSAL_LM", **options
    )
    torch.manual_seed(seed)
    model: Any = get_peft_model(tiny_model(family), config)
    pissa.remember_start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_pissa_is_saved_for_the_unchanged_base(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", family)
    model = with_pissa(family, 0, **options)
    save_backbone(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG_NAME).read_text("utf-8"))
    assert (config["init_lora_weights"], config["r"]) == (True, 8)
    expected = logits(model)
    assert not torch.allclose(expected, logits(tiny_model(family)), atol=1e-2)
    served = load_language_model(tmp_path / "adapter", str(base))
    torch.testing.assert_close(logits(served), expected, atol=1e-4, rtol=1e-4)
    assert model.peft_config["default"].r == 4  # training goes on


def test_pissa_resumes_from_another_decomposition(tmp_path: Path) -> None:
    model, other = with_pissa("llama", 0), with_pissa("llama", 1)
    save_backbone(model, tmp_path / "first")
    load_backbone_weights(other, tmp_path / "first")
    torch.testing.assert_close(logits(other), logits(model), atol=1e-4, rtol=1e-4)
    for (name, parameter), (_, expected) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        if parameter.requires_grad:
            assert torch.equal(parameter, expected), name
    with torch.no_grad():
        for each in (model, other):
            each.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default").weight.mul_(1.5)
    save_backbone(other, tmp_path / "second")
    base = save_tiny_model(tmp_path / "base")
    served = load_language_model(tmp_path / "second", str(base))
    torch.testing.assert_close(logits(served), logits(model), atol=1e-4, rtol=1e-4)


def test_pissa_of_an_earlier_release_is_loaded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It did not keep what its random decomposition had taken out of the base."""
    base = save_tiny_model(tmp_path / "base")
    with_pissa("llama", 0).save_pretrained(str(tmp_path / "adapter"))
    with caplog.at_level("WARNING"):
        load_language_model(tmp_path / "adapter", str(base))
    assert "saved without the random decomposition" in caplog.text


def test_pissa_goes_back_to_its_best_checkpoint_exactly(tmp_path: Path) -> None:
    model = with_pissa("llama", 0)
    before = copy.deepcopy(model.state_dict())
    save_backbone(model, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1.0
    load_backbone_weights(model, tmp_path)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


# -------------------------------------------- larger vocabularies -------------------------------------------


@pytest.mark.parametrize("saved_as", ["safetensors", "bin"])
def test_an_adapter_makes_room_for_its_vocabulary(saved_as: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(320)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "adapter", safe_serialization=saved_as == "safetensors")
    assert load_language_model(tmp_path / "adapter", str(base)).get_output_embeddings().weight.shape[0] == 320


# ---------------------------------------- weights that do not fit -----------------------------------------


def renamed(folder: Path, target: Path, prefix: str) -> Path:
    """A copy whose weights have another prefix, as a wrapper's state dict has."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: each for name, each in weights.items()}, target / "model.safetensors")
    return target


def test_weights_that_fit_no_layer_are_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    wrapped = renamed(base, tmp_path / "wrapped", "module.")
    with pytest.raises(ValueError, match=r"None of the weights in .*wrapped fits a layer of Llama\w+ .*`module\."):
        load_language_model(wrapped)
    make_config().save(wrapped)
    with pytest.raises(ValueError, match=r"None of the weights in .*wrapped fits a layer of LlamaModel"):
        load_embedding_model(wrapped)
    with pytest.raises(ValueError, match="None of the weights in"):
        load_diffusion_model(wrapped, device="cpu")
    with weights_must_fit(), pytest.raises(ValueError, match="None of the weights in"):
        AutoModelForCausalLM.from_pretrained(wrapped)
    diffullama = renamed(base, tmp_path / "diffullama", "denoise_model.")
    with pytest.raises(ValueError, match=r"DiffuLLaMA's layout.*name it in `checkpoint_dir`"):
        load_language_model(diffullama)
    adapter = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / ADAPTER_NAME).is_file()
    with pytest.raises(ValueError, match="None of the weights in"):
        load_language_model(tmp_path / "adapter", str(wrapped))


def test_weights_that_fit_are_loaded_as_ever(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    with weights_must_fit():
        model, info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    tiny_model("llama").model.save_pretrained(tmp_path / "decoder")  # its head is new, its layers are not
    assert load_language_model(tmp_path / "decoder").lm_head is not None
