"""The layers behind the pooling: their closed form, their place in a model's weights, what a recipe may ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.base.modules import Dense

from llamafactory_embed import Encoder
from llamafactory_embed.loading.checkpoint import load_checkpoint_weights, save_checkpoint
from llamafactory_embed.model.dense import ACTIVATIONS, DenseHead, DenseLayer, plan_dense
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from tests.embedders import PROSE, make_config, make_embedder
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


LAYERS: dict[str, Any] = {"dense_sizes": [48, 16], "dense_bias": False, "dense_activations": ["tanh", "identity"]}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_is_that_of_sentence_transformers(activation: str) -> None:
    head = DenseHead(8, [DenseLayer(5, True, activation)])
    theirs = Dense(8, 5, activation_function=ACTIVATIONS[activation]())
    theirs.linear.load_state_dict(head.layers[0].state_dict())
    embeddings = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs({"sentence_embedding": embeddings})["sentence_embedding"]
    torch.testing.assert_close(head(embeddings), expected)


def test_layers_compute_in_their_own_precision() -> None:
    head = DenseHead(64, [DenseLayer(64)])
    embeddings = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(embeddings)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, head(embeddings))


def test_an_embedding_is_what_the_layers_make_of_the_pooled_states() -> None:
    plain, model = make_embedder(), make_embedder(**LAYERS)
    tokenizer = tiny_tokenizer()
    pooled = torch.from_numpy(Encoder(plain, tokenizer).encode(PROSE, normalize=False))
    first, second = (layer.weight.detach() for layer in model.dense.layers)
    expected = torch.tanh(pooled @ first.T) @ second.T
    found = Encoder(model, tokenizer).encode(PROSE, normalize=False, convert_to="torch")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_saved_is_served(pooling: str, tmp_path: Path) -> None:
    options = {"pooling": pooling, "matryoshka_dims": [8, 16], **LAYERS}
    base = save_tiny_model(tmp_path / "base")
    model = make_embedder(lora_dropout=0.0, base_model=str(base), **options).eval()
    save_checkpoint(model, tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    served, trained = Encoder(tmp_path / "saved"), Encoder(model, tiny_tokenizer())
    assert served.dimension == 16
    for dimensions in (8, 16):
        vectors = served.encode(PROSE, dimensions=dimensions, convert_to="torch")
        expected = trained.encode(PROSE, dimensions=dimensions, convert_to="torch")
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"`dimensions: 32` was not trained; this model has 8, 16\."):
        served.encode(PROSE, dimensions=32)

    other: EmbeddingModel = make_embedder(lora_dropout=0.0, base_model=str(base), **options)
    load_checkpoint_weights(other, tmp_path / "saved")
    for name, weight in other.pooling_weights().items():
        torch.testing.assert_close(weight, model.pooling_weights()[name])


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_what_an_engine_has_collected_is_saved(pooling: str, tmp_path: Path) -> None:
    model = make_embedder(pooling=pooling, **LAYERS)
    collected = {name: weight + 1 for name, weight in model.state_dict().items()}
    save_checkpoint(model, tmp_path, collected)
    saved = load_file(tmp_path / "pooler.safetensors")
    assert saved.keys() == model.pooling_weights().keys()
    for name, weight in model.pooling_weights().items():
        assert torch.equal(saved[name], weight + 1)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save_checkpoint(make_embedder(), tmp_path)
    model = EmbeddingModel(tiny_model("llama"), make_config(**LAYERS))
    with pytest.raises(ValueError, match=r"holds no pooler\.safetensors, which `dense_sizes: \[48, 16\]` needs"):
        load_checkpoint_weights(model, tmp_path)


def test_the_record_comes_back(tmp_path: Path) -> None:
    config = replace(make_config(**LAYERS), appends_eos=False, default_task="query")
    config.save(tmp_path)
    assert EmbeddingConfig.load(tmp_path) == config
    assert config.dense == [DenseLayer(48, False, "tanh"), DenseLayer(16, False, "identity")]


def test_one_activation_is_for_all_layers() -> None:
    assert plan_dense([4, 2], True, ["relu"]) == [DenseLayer(4, True, "relu"), DenseLayer(2, True, "relu")]
    assert plan_dense([], True, ["identity"]) == []


@pytest.mark.parametrize(
    ("sizes", "activations", "sentence"),
    [
        ([4], ["softmax"], "`dense_activations` may hold identity, .*, not 'softmax'"),
        ([4, 0], ["tanh"], "`dense_sizes` must be sizes of at least 1"),
        ([4, 2], ["tanh", "relu", "gelu"], "names 3 functions for the 2 layers of `dense_sizes`"),
    ],
)
def test_what_no_layer_can_be_is_refused(sizes: list[int], activations: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_dense(sizes, True, activations)
