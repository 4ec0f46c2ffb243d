"""Adapters that a recipe starts from: merged in their order, resumed or only evaluated, and served alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from attention_patch import patch_attention
from llamafactory_embed import Encoder
from llamafactory_embed.loading import backbone as backbone_loading
from llamafactory_embed.loading import embedder as loading
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.model.packed import forward_packed, pack_texts
from llamafactory_embed.train.embed.contrastive import workflow
from tests.e2e.contrastive_runs import DENSE, LATENT, LORA, perform, recipe, write_data
from tests.tiny_models import tiny_model, tiny_tokenizer


TEXTS = ["the study of stars", "a young horse", "to run away"]
EVALUATED = {"eval_dataset": "nouns_heldout", "do_eval": True}
FAST = {"learning_rate": 1.0, "max_steps": 2}  # far enough to see what was trained

Run = Callable[..., EmbeddingModel]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("adapters") / "data")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of LLM2Vec's kind. The second one is a DoRA, whose effect depends on the weights below it."""
    folder = tmp_path_factory.mktemp("llm2vec")
    for number, options in enumerate([{}, {"use_dora": True}]):
        torch.manual_seed(number)
        adapted = get_peft_model(
            tiny_model("llama").base_model, LoraConfig(r=2, target_modules="all-linear", **options)
        )
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        adapted.save_pretrained(folder / f"mntp-{number}")
    return [str(folder / f"mntp-{number}") for number in range(2)]


@pytest.fixture
def run(tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Perform a recipe in `tmp_path / name` and return its model as the run left it."""

    def perform_and_keep(name: str, **options: Any) -> EmbeddingModel:
        loaded: list[EmbeddingModel] = []
        load = loading.load_embedding_model_for_training

        def load_and_keep(*args: Any) -> EmbeddingModel:
            loaded.append(load(*args))
            return loaded[0]

        monkeypatch.setattr(workflow, "load_embedding_model_for_training", load_and_keep)
        perform(recipe(tiny_llama, data, tmp_path / name, **{**LORA, "dataset": "nouns", **options}))
        return loaded[0]

    return perform_and_keep


def embed(model: EmbeddingModel) -> np.ndarray:
    return Encoder(model, tiny_tokenizer()).encode(TEXTS)


def stacked_in_llm2vec(base: Path, adapters: list[str]) -> torch.Tensor:
    """Last states of a decoder that gets the adapters one after the other, under LLM2Vec's own names."""
    decoder: Any = AutoModel.from_pretrained(base)
    for adapter in adapters:
        decoder = PeftModel.from_pretrained(decoder, adapter).merge_and_unload()
    return last_states(decoder)


def last_states(decoder: Any) -> torch.Tensor:
    patch_attention(decoder, "bidirectional")
    batch = pack_texts([tiny_tokenizer()(text)["input_ids"] for text in TEXTS])[0]
    with torch.no_grad():
        return forward_packed(decoder.eval(), batch)[0]


def test_a_new_adapter_on_the_base(run: Run, tmp_path: Path) -> None:
    model = run("new", **FAST, **LATENT, **DENSE)
    encoder = Encoder(tmp_path / "new")
    assert encoder.config.merged_adapters == []
    assert encoder.dimension == DENSE["dense_sizes"][-1]
    np.testing.assert_allclose(encoder.encode(TEXTS), embed(model), atol=1e-5)


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_other_kinds_of_lora_are_served_as_trained(kind: str, run: Run, tmp_path: Path) -> None:
    model = run(kind, **FAST, **{kind: True})
    assert json.loads((tmp_path / kind / "adapter_config.json").read_text("utf-8"))[kind]
    encoder = Encoder(tmp_path / kind)
    np.testing.assert_allclose(encoder.encode(TEXTS), embed(model), atol=1e-5)
    assert not np.allclose(embed(model), embed(run("plain", **FAST)), atol=1e-3)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_new_adapter_on_merged_ones(
    order: list[int], run: Run, adapters: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    named = [adapters[number] for number in order]
    start = {"adapter_name_or_path": ",".join(named), "create_new_adapter": True}
    untrained = run("untrained", **start, learning_rate=0.0, max_steps=1)
    merged = stacked_in_llm2vec(tiny_llama, named)
    torch.testing.assert_close(last_states(untrained.decoder), merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged, stacked_in_llm2vec(tiny_llama, named[::-1]), atol=1e-3)

    model = run("trained", **start, **FAST)
    encoder = Encoder(tmp_path / "trained")
    assert encoder.config.merged_adapters == named
    np.testing.assert_allclose(encoder.encode(TEXTS), embed(model), atol=1e-5)
    assert not np.allclose(embed(model), embed(untrained), atol=1e-3)


def test_the_last_adapter_goes_on(run: Run, adapters: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    untrained = run("untrained", adapter_name_or_path=",".join(adapters), learning_rate=0.0, max_steps=1)
    stacked = stacked_in_llm2vec(tiny_llama, adapters)
    torch.testing.assert_close(last_states(untrained.decoder), stacked, atol=1e-5, rtol=1e-5)
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (Path(adapters[1]), tmp_path / "untrained")
    )
    assert {name.replace(".model.layers.", ".model.model.layers.") for name in before} == set(after)

    model = run("trained", adapter_name_or_path=",".join(adapters), **FAST)
    encoder = Encoder(tmp_path / "trained")
    assert encoder.config.merged_adapters == adapters[:1]
    np.testing.assert_allclose(encoder.encode(TEXTS), embed(model), atol=1e-5)
    assert not np.allclose(embed(model), embed(untrained), atol=1e-3)


def test_a_checkpoint_goes_on_with_its_pooler(run: Run, tmp_path: Path) -> None:
    first = run("first", **FAST, **LATENT)
    again = run("again", **LATENT, adapter_name_or_path=str(tmp_path / "first"), learning_rate=0.0, max_steps=1)
    np.testing.assert_allclose(embed(again), embed(first), atol=1e-6)
    with pytest.raises(ValueError, match=r"first was trained with `latents: 6`.*set them alike"):
        run("other", **{**LATENT, "latents": 5}, adapter_name_or_path=str(tmp_path / "first"), max_steps=1)


def test_a_checkpoint_goes_on_with_the_layers_behind_its_pooling(run: Run, tmp_path: Path) -> None:
    first = run("first", **FAST, **DENSE)
    unchanged = {"adapter_name_or_path": str(tmp_path / "first"), "learning_rate": 0.0, "max_steps": 1}
    np.testing.assert_allclose(embed(run("again", **DENSE, **unchanged)), embed(first), atol=1e-6)
    anew = run("anew", **DENSE | {"dense_activations": ["tanh"]}, **unchanged)
    moved = (first.dense.layers[0].weight - anew.dense.layers[0].weight).detach()
    assert float(moved.abs().max()) > 1e-2
    assert run("without", **unchanged).dimension == 32


def test_evaluation_only(run: Run, adapters: list[str], tmp_path: Path) -> None:
    """Of a checkpoint above a merged adapter, which is an adapter above another."""
    trained = run("trained", **FAST, **LATENT, **EVALUATED, adapter_name_or_path=adapters[0], create_new_adapter=True)
    stack = f"{adapters[0]},{tmp_path / 'trained'}"
    evaluated = run("evaluated", **LATENT, **EVALUATED, do_train=False, adapter_name_or_path=stack)
    np.testing.assert_allclose(embed(evaluated), embed(trained), atol=1e-5)
    assert len(evaluated.embedding_config.merged_adapters) == 2
    assert not isinstance(evaluated.backbone, PeftModel)

    trained_metrics, evaluated_metrics = (
        json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("trained", "evaluated")
    )
    del trained_metrics["epoch"], evaluated_metrics["epoch"]
    assert evaluated_metrics == pytest.approx(trained_metrics)
    assert not (tmp_path / "evaluated" / "README.md").exists()
    base = run("base", **EVALUATED, do_train=False)
    assert not np.allclose(embed(base), embed(evaluated), atol=1e-3)


def test_evaluation_unlike_the_training_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("trained", **FAST)
    said: list[str] = []
    monkeypatch.setattr(loading.logger, "warning_rank0", said.append)
    options = {**EVALUATED, "do_train": False, "adapter_name_or_path": str(tmp_path / "trained")}
    run("alike", **options)
    assert not said
    run("unlike", **options, pooling="last", attention="causal")
    assert len(said) == 1
    assert "trained was trained with `attention: bidirectional`, `pooling: mean`; the recipe" in said[0]


def test_nothing_is_merged_into_quantized_or_sharded_weights(
    adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("llama")
    assert backbone_loading.merged_adapters(adapters, base, new_adapter=False) == adapters
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    assert backbone_loading.merged_adapters(adapters, model, new_adapter=True) == adapters
    assert backbone_loading.merged_adapters(adapters, model, new_adapter=False) == adapters[:1]
    with monkeypatch.context() as patch:
        patch.setattr(backbone_loading, "is_deepspeed_zero3_enabled", lambda: True)
        assert backbone_loading.merged_adapters(adapters[:1], model, new_adapter=True) == []
    base.quantization_method = "bitsandbytes"
    assert backbone_loading.merged_adapters(adapters[:1], model, new_adapter=True) == []


def test_a_configuration_says_what_was_merged(run: Run, tmp_path: Path) -> None:
    """Also that of a checkpoint on the way, which the adapter of LLaMA-Factory needs no conversion for."""
    run("first", **FAST)
    options = {"adapter_name_or_path": str(tmp_path / "first"), "create_new_adapter": True}
    run("second", **FAST, **options, save_strategy="steps", save_steps=1)
    assert EmbeddingConfig.load(tmp_path / "second" / "checkpoint-1").merged_adapters == [str(tmp_path / "first")]
    assert not (tmp_path / "second" / backbone_loading.CONVERTED_ADAPTERS).exists()

    options |= {"adapter_name_or_path": str(tmp_path), "adapter_folder": "first"}
    model = run("third", **FAST, **options)
    np.testing.assert_allclose(Encoder(tmp_path / "third").encode(TEXTS), embed(model), atol=1e-5)
