"""Checkpoints in DiffuLLaMA's layout are sampled, and served, as they are."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.chat import ChatModel
from safetensors.torch import load_file, save_file

from llamafactory_embed.cli import main
from llamafactory_embed.loading.adapted_checkpoint import (
    CONVERTED_FOLDER,
    WRAPPED_MASKS,
    is_wrapped,
    start_from_checkpoint,
)
from llamafactory_embed.model.mask_token import RECORD_NAME, MaskedTokenRecord
from llamafactory_embed.sampling.checkpoint import load_sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.loading.test_wrapped_checkpoint import model_args
from tests.sampling.memory import TEXT, memorize
from tests.tiny_models import save_tiny_model, tiny_tokenizer


LENGTH = len(tiny_tokenizer()(TEXT)["input_ids"])
SETTINGS = SamplingSettings(steps=LENGTH + 4, max_new_tokens=LENGTH + 4)


def wrap(folder: Path, target: Path, layout: str = "safetensors") -> Path:
    """The same model under the names of DiffuLLaMA's wrapper, without what this package writes."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(RECORD_NAME, "model.safetensors"))
    names = {
        "transformer.wte.weight": "embed_tokens.weight",
        "model.embed_tokens.weight": "embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
    }
    weights = {}
    for name, each in load_file(folder / "model.safetensors").items():
        inner = name.removeprefix("transformer.").removeprefix("model.")
        weights[names.get(name, f"denoise_model.{inner}")] = each
    if layout == "bin":
        torch.save(weights, target / "pytorch_model.bin")
    else:
        save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_what_it_knows_by_heart_is_written(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = wrap(memorize(True), tmp_path / "wrapped", layout)
    assert is_wrapped(wrapped)
    assert not is_wrapped(memorize(True))
    before = {path.name: path.read_bytes() for path in wrapped.iterdir()}
    sampler = load_sampler(wrapped, SETTINGS, device="cpu")  # the mask token is the tokenizer's
    assert sampler.shift
    assert sampler.decode(sampler.complete([[]])[0].text) == TEXT
    call = ["sample", str(wrapped), "--device", "cpu", "--temperature", "0", "--tokens", str(LENGTH + 4)]
    assert main([*call, "--steps", str(LENGTH + 4)]) == 0
    assert capsys.readouterr().out.endswith(f"{TEXT}\n")
    assert {path.name: path.read_bytes() for path in wrapped.iterdir()} == before


def test_the_published_models_hide_tokens_behind_one_of_the_vocabulary(tmp_path: Path) -> None:
    mask = WRAPPED_MASKS["llama"]
    base = save_tiny_model(tmp_path / "base", vocab_size=mask + 20)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([f"<{number}>" for number in range(mask + 1 - len(tokenizer))])
    tokenizer.save_pretrained(base)
    sampler = load_sampler(wrap(base, tmp_path / "wrapped"), device="cpu")
    assert (sampler.mask_token, sampler.shift) == (mask, True)
    assert load_sampler(tmp_path / "wrapped", mask_token="eos", device="cpu").mask_token == tokenizer.eos_token_id
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.save_pretrained(tmp_path / "wrapped")  # which has no such token
    with pytest.raises(ValueError, match="no embedding for its mask token"):
        load_sampler(tmp_path / "wrapped")


def test_weights_alone_are_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = wrap(memorize(True), tmp_path / "wrapped")
    (wrapped / "config.json").unlink()
    assert main(["sample", str(wrapped)]) == 1
    assert "in DiffuLLaMA's layout without config.json: copy" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["model_name_or_path", "checkpoint_dir"])
def test_chat(option: str, tmp_path: Path) -> None:
    """transformers would find none of the weights, and answer with random ones."""
    wrapped = wrap(memorize(True), tmp_path / "wrapped")
    recipe: dict[str, Any] = {
        "model_name_or_path": str(save_tiny_model(tmp_path / "base", "gpt2", vocab_size=310)),
        "stage": "ddm-sft",
        "template": "empty",
        "infer_dtype": "float32",
        "max_new_tokens": LENGTH + 4,
        "diffusion_steps": LENGTH + 4,
        "do_sample": False,
    }
    served = ChatModel(recipe | {option: str(wrapped)})
    (answer,) = served.chat([{"role": "user", "content": "<s>To be prepared"}])
    assert f"To be prepared{answer.response_text}" == TEXT


class Run:
    """What the loader asks of training arguments."""

    process_index = 0

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = str(output_dir)

    def main_process_first(self, desc: str) -> Any:
        return contextlib.nullcontext()


def test_a_recipe_starts_from_it(tmp_path: Path) -> None:
    wrapped = wrap(memorize(True), tmp_path / "wrapped")
    started = start_from_checkpoint(model_args(wrapped), None, Run(tmp_path / "out"))
    converted = Path(started.model_name_or_path)
    assert converted == tmp_path / "out" / CONVERTED_FOLDER
    found, expected = load_file(converted / "model.safetensors"), load_file(memorize(True) / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in found.items())
    plain = model_args(memorize(True))
    assert start_from_checkpoint(plain, None, Run(tmp_path / "out")) is plain


def test_what_was_converted_can_be_named_again(tmp_path: Path) -> None:
    """It lies where a run writes what it converts: making room for that must not take it away."""
    base = model_args(save_tiny_model(tmp_path / "base", "gpt2", vocab_size=310))
    first = start_from_checkpoint(base, str(wrap(memorize(True), tmp_path / "wrapped")), Run(tmp_path / "out"))
    weights = Path(first.model_name_or_path, "model.safetensors").read_bytes()
    again = start_from_checkpoint(base, first.model_name_or_path, Run(tmp_path / "out"))
    assert again.model_name_or_path == first.model_name_or_path
    assert Path(again.model_name_or_path, "model.safetensors").read_bytes() == weights


def test_a_checkpoint_of_ours_keeps_its_record(tmp_path: Path) -> None:
    adapted = shutil.copytree(memorize(False), tmp_path / "adapted")
    MaskedTokenRecord("<mask>", 300, shift=False, block_size=4, base_model="gone").save(adapted)
    base = model_args(save_tiny_model(tmp_path / "base", "gpt2", vocab_size=310))
    started = start_from_checkpoint(base, str(adapted), Run(tmp_path / "out"))
    record = MaskedTokenRecord.find([started.model_name_or_path])
    assert record == MaskedTokenRecord("<mask>", 300, shift=False, block_size=4)
    assert json.loads((adapted / RECORD_NAME).read_text("utf-8"))["base_model"] == "gone"
