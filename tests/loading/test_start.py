"""`model_name_or_path` and `ref_model` name published checkpoints: chains of adapters, revisions, other layouts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafactory_embed import Encoder
from llamafactory_embed.loading.attention_pool import ATTENTION_POOL_NAME, read_attention_pool
from llamafactory_embed.loading.checkpoint import load_diffusion_model
from llamafactory_embed.loading.embedder import continue_pooler
from llamafactory_embed.loading.masked_tokens import MaskedTokenRequest
from llamafactory_embed.loading.start import resolve_start
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.train.embed.tdro.reference import reads_the_same, reference_checkpoints
from tests.e2e.contrastive_runs import LORA, perform, recipe, write_data
from tests.embedders import PROSE, make_config
from tests.loading.published import MNTP, SUPERVISED, copy_llm2vec, save_pooling_and_attention, save_wrapped
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


@pytest.fixture
def llm2vec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_llm2vec(tmp_path))
    return tmp_path


def model_args(name: str | Path, adapters: list[str] | None = None, **more: Any) -> Any:
    values = {
        "model_name_or_path": str(name), "adapter_name_or_path": adapters, "model_revision": "main",
        "hf_hub_token": None, "cache_dir": None, "quantization_bit": None, "trust_remote_code": False,
    }  # fmt: skip
    return SimpleNamespace(**values | more)


def finetuning(kind: str = "lora", **more: Any) -> Any:
    values = {"finetuning_type": kind, "create_new_adapter": False, "stage_options": SimpleNamespace()}
    return SimpleNamespace(**values | {"ref_model": None, "ref_model_adapters": None} | more)


TRAINING: Any = SimpleNamespace(do_train=True, output_dir="out")


def test_a_chain_as_the_model_is_merged_below_a_new_adapter(llm2vec: Path) -> None:
    given, how = model_args(SUPERVISED), finetuning()
    resolved = resolve_start(given, how, TRAINING)
    assert (resolved.model_name_or_path, resolved.adapter_name_or_path) == ("base", [MNTP, SUPERVISED])
    assert how.create_new_adapter is True
    assert given.model_name_or_path == SUPERVISED  # the caller's are left alone


def test_an_adapter_that_is_named_goes_on_training(llm2vec: Path) -> None:
    how = finetuning()
    resolved = resolve_start(model_args(MNTP, [SUPERVISED]), how, TRAINING)
    assert (resolved.model_name_or_path, resolved.adapter_name_or_path) == ("base", [MNTP, SUPERVISED])
    assert how.create_new_adapter is False


def test_what_cannot_be_trained_on_a_chain(llm2vec: Path) -> None:
    with pytest.raises(
        ValueError, match="`finetuning_type: full` does not train: use `lora`, or export it as a model"
    ):
        resolve_start(model_args(MNTP), finetuning("full"), TRAINING)
    with pytest.raises(ValueError, match="cannot be merged into quantized weights: leave out `quantization_bit`"):
        resolve_start(model_args(MNTP, quantization_bit=4), finetuning(), TRAINING)


def test_a_plain_model_and_an_unknown_name_are_left_alone(tmp_path: Path) -> None:
    for name in (save_tiny_model(tmp_path / "plain"), "nobody/nothing"):
        given = model_args(name)
        assert resolve_start(given, finetuning("full"), TRAINING) is given


def test_revisions_in_the_words_of_the_host(tmp_path: Path) -> None:
    commit = save_tiny_model(tmp_path / "models--who--what" / "snapshots" / ("a" * 40))
    (tmp_path / "models--who--what" / "refs").mkdir()
    (tmp_path / "models--who--what" / "refs" / "v2").write_text("a" * 40)
    given = model_args("who/what@v2", ["who/what@v2"], cache_dir=str(tmp_path))
    resolved = resolve_start(given, finetuning(), TRAINING)
    assert (resolved.model_name_or_path, resolved.model_revision) == ("who/what", "v2")
    assert resolved.adapter_name_or_path == [str(commit)]


def test_a_run_from_a_chain_of_llm2vec(llm2vec: Path) -> None:
    """From the recipe to a checkpoint that serves what the run embedded."""
    data = write_data(llm2vec / "data")
    options = {
        **LORA,
        "max_steps": 1,
        "cutoff_len": 128,
        "learning_rate": 1e-30,
        "skip_instruction": True,
        "normalize_embeddings": False,
    }
    perform(recipe(Path(SUPERVISED), data, llm2vec / "run", **options))
    saved = EmbeddingConfig.load(llm2vec / "run")
    assert (saved.base_model, [Path(each).name for each in saved.merged_adapters]) == ("base", [MNTP, SUPERVISED])
    trained = Encoder(llm2vec / "run", device="cpu").encode(PROSE[:2])
    np.testing.assert_allclose(trained, Encoder(SUPERVISED, device="cpu").encode(PROSE[:2]), atol=1e-5)


def test_diffullamas_layout_starts_any_stage_and_is_sampled(tmp_path: Path) -> None:
    folder = save_wrapped(tmp_path / "wrapped")
    training: Any = copy.copy(TRAINING)
    training.output_dir, training.process_index = str(tmp_path / "out"), 0
    training.main_process_first = lambda **_: torch.no_grad()  # any context
    resolved = resolve_start(model_args(folder), finetuning("full"), training)
    found = AutoModelForCausalLM.from_pretrained(resolved.model_name_or_path).state_dict()
    for name, each in tiny_model("gpt2").state_dict().items():
        assert torch.equal(found[name], each), name
    request = MaskedTokenRequest(mask_token="eos", shift=True)
    sampled = load_diffusion_model(folder, request, device="cpu").model
    assert torch.equal(sampled.state_dict()["transformer.wte.weight"],
                       found["transformer.wte.weight"])  # fmt: skip


def test_the_pooler_of_pooling_and_attention_goes_on_training(tmp_path: Path) -> None:
    adapter, _, pooler = save_pooling_and_attention(tmp_path, "multi_layer_latent", causal=False)
    sizes = {"pooling": "multi_layer_latent", "latents": 4, "latent_heads": 2, "latent_head_size": 8}
    model = EmbeddingModel(tiny_model("mistral"), make_config(**sizes))
    continue_pooler(model, str(adapter))
    for name, each in pooler.state_dict().items():
        assert torch.equal(model.pooler.state_dict()[name], each), name
    assert len(read_attention_pool(adapter / ATTENTION_POOL_NAME)["layer_embeddings"]) == 32
    other = EmbeddingModel(tiny_model("mistral"), make_config(**{**sizes, "latents": 5}))
    with pytest.raises(ValueError, match=r"holds 4 latents read by heads of 16 numbers together: set `latents: 4`"):
        continue_pooler(other, str(adapter))


def test_a_reference_may_be_a_chain_of_adapters(llm2vec: Path) -> None:
    how = finetuning(ref_model=SUPERVISED)
    assert reference_checkpoints(how, model_args("base")) == ("base", [MNTP, SUPERVISED])
    path = Path(MNTP, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "gone"}))
    with pytest.raises(ValueError, match=r"`ref_model`: The adapter in .* belongs to gone"):
        reference_checkpoints(how, model_args("base"))


def test_tokenizers_that_differ_in_special_tokens_read_the_same() -> None:
    ours = tiny_tokenizer()
    tdro, more, moved = (copy.deepcopy(ours) for _ in range(3))
    tdro.add_special_tokens({"pad_token": "[PAD]"})
    more.add_tokens(["something"])
    moved.add_special_tokens({"pad_token": "[PAD]"})
    assert reads_the_same(ours, tdro)
    assert reads_the_same(tdro, ours)
    assert not reads_the_same(ours, more)
    moved.add_tokens(["else"])
    tdro.add_tokens(["than", "else"])
    assert not reads_the_same(tdro, moved)
