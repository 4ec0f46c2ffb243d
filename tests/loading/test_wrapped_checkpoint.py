"""`checkpoint_dir`: weights in the layout of transformers or DiffuLLaMA, whole or in shards, with every name in it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainingArguments

from llamafactory_embed.loading.adapted_checkpoint import convert_checkpoint, start_from_checkpoint
from llamafactory_embed.loading.weights import find_weight_files
from tests.golden.case_files import GoldenCase, golden_cases
from tests.tiny_models import save_tiny_model, tiny_tokenizer


@pytest.fixture
def base(case: GoldenCase, tmp_path: Path) -> Path:
    """The model that was adapted: the case's configuration with other weights, and a tokenizer."""
    folder = case.copy_model(tmp_path / "base")
    weights = {name: torch.zeros_like(each) for name, each in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def wrapped_weights(case: GoldenCase) -> dict[str, Tensor]:
    """The case's weights under DiffuLLaMA's names, as recorded or by the recorded map."""
    recorded = case.folder / "weights_wrapped.safetensors"
    if recorded.is_file():
        return load_file(recorded)
    plain, names = load_file(case.folder / "weights.safetensors"), case.data["checkpoint_names"]["map"]
    return {names[name]: each for name, each in plain.items()}


def write(folder: Path, weights: dict[str, Tensor], layout: str) -> Path:
    folder.mkdir()
    if layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        names = sorted(weights)
        weight_map = {}
        for number, start in enumerate(range(0, len(names), 5)):
            shard = {name: weights[name] for name in names[start : start + 5]}
            file = f"model-{number}.{'safetensors' if layout == 'shards' else 'bin'}"
            (save_file if layout == "shards" else torch.save)(shard, folder / file)
            weight_map |= dict.fromkeys(shard, file)
        index = "model.safetensors.index.json" if layout == "shards" else "pytorch_model.bin.index.json"
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def assert_is_the_case(folder: Path, case: GoldenCase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    found, expected = model.state_dict(), load_file(case.folder / "weights.safetensors")
    assert expected.keys() <= found.keys()
    for name, each in expected.items():
        assert torch.equal(found[name], each), name


@golden_cases("ddm/loss")
@pytest.mark.parametrize("layout", ["safetensors", "bin", "shards", "bin shards"])
def test_the_wrapped_layout_is_renamed(case: GoldenCase, base: Path, layout: str, tmp_path: Path) -> None:
    source = write(tmp_path / "adapted", wrapped_weights(case), layout)
    converted = convert_checkpoint(source, str(base), tmp_path / "out" / "converted")
    assert_is_the_case(converted, case)
    assert (converted / "tokenizer_config.json").is_file()


@golden_cases("ddm/loss")
def test_the_layout_of_transformers_is_taken_as_it_is(case: GoldenCase, base: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "adapted", load_file(case.folder / "weights.safetensors"), "shards")
    assert_is_the_case(convert_checkpoint(source, str(base), tmp_path / "converted"), case)


@golden_cases("ddm/loss")
def test_computed_buffers_of_old_checkpoints_are_left_out(case: GoldenCase, base: Path, tmp_path: Path) -> None:
    old = {
        "denoise_model.h.0.attn.bias": torch.ones(1),
        "denoise_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    source = write(tmp_path / "adapted", wrapped_weights(case) | old, "safetensors")
    assert_is_the_case(convert_checkpoint(source, str(base), tmp_path / "converted"), case)


@golden_cases("ddm/loss")
def test_missing_and_unexpected_names_are_listed(case: GoldenCase, base: Path, tmp_path: Path) -> None:
    weights = wrapped_weights(case)
    names = {wrapped: plain for plain, wrapped in case.data["checkpoint_names"]["map"].items()}
    dropped = next(name for name in weights if name.startswith("denoise_model."))
    del weights[dropped]
    source = write(tmp_path / "adapted", weights | {"denoise_model.extra.weight": torch.ones(2)}, "safetensors")
    alone = write(tmp_path / "incomplete", weights, "safetensors")
    with pytest.raises(ValueError, match="lacks 1"):
        convert_checkpoint(alone, str(base), tmp_path / "converted")
    with pytest.raises(ValueError) as refusal:
        convert_checkpoint(source, str(base), tmp_path / "converted")
    assert f"lacks 1 ({names[dropped]})" in str(refusal.value)
    assert "has unexpected 1 (denoise_model.extra.weight)" in str(refusal.value)
    assert not (tmp_path / "converted").exists()


@golden_cases("ddm/loss")
def test_other_shapes_are_refused(case: GoldenCase, base: Path, tmp_path: Path) -> None:
    weights = wrapped_weights(case)
    name = next(name for name in weights if name.startswith("denoise_model.") and weights[name].dim() == 2)
    weights[name] = weights[name][:-1].contiguous()
    with pytest.raises(ValueError, match="has the shape"):
        convert_checkpoint(write(tmp_path / "adapted", weights, "bin"), str(base), tmp_path / "converted")


@golden_cases("ddm/loss")
def test_a_larger_vocabulary_is_taken_over(case: GoldenCase, base: Path, tmp_path: Path) -> None:
    weights = wrapped_weights(case)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = torch.cat([weights[name], torch.full((3, weights[name].shape[1]), 7.0)])
    converted = convert_checkpoint(write(tmp_path / "adapted", weights, "bin"), str(base), tmp_path / "converted")
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.config.vocab_size == len(weights["embed_tokens.weight"])
    assert torch.equal(model.get_input_embeddings().weight, weights["embed_tokens.weight"])


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        find_weight_files(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ValueError, match="holds an adapter: name it in `adapter_name_or_path`"):
        find_weight_files(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(ValueError, match=r"lacks the shards model-2\.safetensors"):
        find_weight_files(tmp_path)


def model_args(name: Path) -> Any:
    return SimpleNamespace(
        model_name_or_path=str(name), hf_hub_token=None, cache_dir=None, trust_remote_code=False, model_revision="main"
    )


def test_a_start_leaves_the_arguments_alone_and_replaces_an_older_conversion(tmp_path: Path) -> None:
    training_args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    base = save_tiny_model(tmp_path / "base")
    given = model_args(base)
    assert start_from_checkpoint(given, None, training_args) is given
    for seed in (1, 2):
        adapted = save_tiny_model(tmp_path / f"adapted{seed}", seed=seed)
        started = start_from_checkpoint(given, str(adapted), training_args)
        assert given.model_name_or_path == str(base)
        found = AutoModelForCausalLM.from_pretrained(started.model_name_or_path).state_dict()
        expected = AutoModelForCausalLM.from_pretrained(adapted).state_dict()
        assert all(torch.equal(found[name], each) for name, each in expected.items())


def test_a_name_that_the_hub_does_not_give_is_refused(tmp_path: Path) -> None:
    training_args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="`checkpoint_dir`: nobody/nothing is no folder"):
        start_from_checkpoint(model_args(tmp_path), "nobody/nothing", training_args)
