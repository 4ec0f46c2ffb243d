"""Folders that sentence-transformers has written: our packed engine embeds what sentence-transformers does, and says
of the others what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoTokenizer

from llamafactory_embed import Encoder
from llamafactory_embed.export.export import export_checkpoint
from llamafactory_embed.export.serving import plan_serving
from llamafactory_embed.loading.embedder import continue_pooler
from llamafactory_embed.loading.sentence_transformers_folder import (
    UnknownModulesError,
    is_sentence_transformers_folder,
    load_dense_modules,
    load_sentence_transformers_folder,
    read_sentence_transformers_folder,
)
from tests.embedders import make_embedder
from tests.export.checkpoints import train

from .sentence_transformers_models import LENGTH, PROMPTS, TEXTS, write_model


BOTH_SIDES = {"is_causal": False}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"pooling": "lasttoken"},
    "qwen3": {"pooling": "lasttoken", "ends_with_eos": True, "classic": True},
    "qwen2": {"dense": [(48, nn.Tanh()), (16, nn.Identity())], **BOTH_SIDES},
    "mistral": {"pooling": "weightedmean"},
    "gpt2": {},
    "gemma3": {"use_bidirectional_attention": True, "dense": [(16, nn.Identity())]},
    "bert": {"pooling": "cls", "classic": True},
    "distilbert": {"pooling": "cls"},
    "electra": {},
    "roberta": {},
    "xlm-roberta": {"pooling": "cls"},
    "modernbert": {"pooling": "cls"},
}

Write = Callable[..., Path]


def open_encoder(folder: Path) -> Encoder:
    """What `Encoder` is around such a folder."""
    model = load_sentence_transformers_folder(folder, device="cpu")
    return Encoder(model, AutoTokenizer.from_pretrained(folder))


def open_theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize("name", MODELS)
def test_ours_is_theirs(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", name, **MODELS[name])
    assert is_sentence_transformers_folder(folder)
    theirs, ours = open_theirs(folder), open_encoder(folder)
    assert ours.config.document_max_length == LENGTH
    assert ours.dimension == theirs.get_embedding_dimension()
    for prompt_name in PROMPTS:
        expected = theirs.encode(TEXTS, prompt_name=prompt_name)
        np.testing.assert_allclose(ours.encode(TEXTS, task=prompt_name), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        ours.encode(TEXTS, prompt=" as it is "), theirs.encode(TEXTS, prompt=" as it is "), atol=1e-5
    )
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS, role="query"), theirs.encode_query(TEXTS), atol=1e-5)
    assert not np.allclose(ours.encode(TEXTS), ours.encode(TEXTS, role="query"), atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [{"pooling": "last", "attention": "causal"}, {"attention": "bidirectional", "dense_sizes": [48, 16]}],
    ids=["last", "dense"],
)
def test_our_exports_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    trained = train(tmp_path, "qwen3", **options)
    exported = tmp_path / "exported"
    export_checkpoint(trained.folder, exported)
    expected = Encoder(exported)
    (exported / "embedding_config.json").unlink()
    found = open_encoder(exported)
    assert found.config.attention == options["attention"]
    assert found.config.dense_sizes == options.get("dense_sizes", [])
    np.testing.assert_allclose(found.encode(TEXTS), expected.encode(TEXTS), atol=1e-5)
    for task in expected.config.instructions:
        np.testing.assert_allclose(found.encode(TEXTS, task=task), expected.encode(TEXTS, task=task), atol=1e-5)


def test_training_goes_on_with_its_dense_layers(written: Path) -> None:
    same = make_embedder("qwen2", dense_sizes=[16], dense_activations=["tanh"])
    other = make_embedder("qwen2", dense_sizes=[16], dense_activations=["gelu"])
    before = other.dense.layers[0].weight.clone()
    saved = load_file(written / "2_Dense" / "model.safetensors")["linear.weight"]
    for model in (same, other):
        continue_pooler(model, str(written))
    assert torch.equal(same.dense.layers[0].weight, saved)
    assert torch.equal(other.dense.layers[0].weight, before)


# --------------------------------------------------------------------------------------------------------------------
# What is more than our engine has
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("written") / "model", "qwen2", dense=[(16, nn.Tanh())])


def edited(written: Path, folder: Path, changes: dict[str, dict[str, Any]]) -> Path:
    """The same files, these keys of some of them changed; the weights are not read."""
    for source in written.rglob("*.json"):
        target = folder / source.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        values = json.loads(source.read_text("utf-8"))
        change = changes.get(source.relative_to(written).as_posix(), {})
        if isinstance(values, list):
            values = [values[index] | change.get(str(index), {}) for index in range(len(values))]
        else:
            values |= change
        target.write_text(json.dumps(values), encoding="utf-8")
    return folder


UNKNOWN: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "module": (
        {"modules.json": {"1": {"type": "custom_st.Pooling"}}},
        "its modules are Transformer, custom_st.Pooling",
    ),
    "order": (
        {"modules.json": {"2": {"type": "sentence_transformers.models.LayerNorm"}}},
        "Pooling, LayerNorm, Normal",
    ),
    "poolings": ({"1_Pooling/config.json": {"pooling_mode": ["mean", "cls"]}}, "its pooling is mean and cls"),
    "max": ({"1_Pooling/config.json": {"pooling_mode": "max"}}, "its pooling is max"),
    "prompt": ({"1_Pooling/config.json": {"include_prompt": False}}, "its pooling leaves the prompt out"),
    "residual": ({"2_Dense/config.json": {"use_residual": True}}, "2_Dense is more than a linear layer"),
    "activation": (
        {"2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Softplus"}},
        "the activation of 2_Dense is torch.nn.modules.activation.Softplus",
    ),
    "code": ({"config.json": {"auto_map": {"AutoModel": "modeling.Model"}}}, "its model brings code of its own"),
    "arguments": (
        {"sentence_bert_config.json": {"processor_kwargs": {"add_eos_token": True}}},
        "its Transformer module sets `processor_kwargs`",
    ),
    "chat": ({"sentence_bert_config.json": {"modality_config": {"message": {}}}}, "sets `modality_config`"),
    "small letters": ({"sentence_bert_config.json": {"do_lower_case": True}}, r"small letters \(`do_lower_case`\)"),
    "left": ({"tokenizer_config.json": {"truncation_side": "left"}}, "cuts long texts at their beginning"),
    "cut": ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "it cuts its vectors to 8 numbers"),
    "similarity": ({"config_sentence_transformers.json": {"similarity_fn_name": "manhattan"}}, "by manhattan"),
    "brace": ({"config_sentence_transformers.json": {"prompts": {"document": "{x}"}}}, "holds a brace: '{x}'"),
    "architecture": ({"config.json": {"model_type": "made_up"}}, "transformers does not know its architecture"),
    "mixers": ({"config.json": {"model_type": "mpnet"}}, "MPNetModel computes its attention itself"),
    "encoder": ({"config.json": {"model_type": "camembert"}}, "its architecture is camembert"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_folder_that_is_more_says_what(case: str, written: Path, tmp_path: Path) -> None:
    changes, sentence = UNKNOWN[case]
    with pytest.raises(UnknownModulesError, match=f"needs sentence-transformers, for .*{sentence}"):
        read_sentence_transformers_folder(edited(written, tmp_path, changes))


def test_what_does_not_change_a_vector_is_read(written: Path, tmp_path: Path) -> None:
    changes = {
        "sentence_bert_config.json": {"query_length": 8, "document_length": 16, "model_args": {"torch_dtype": "auto"}},
        "config_sentence_transformers.json": {
            "prompts": {"passage": "P: ", "sts": "S: "},
            "default_prompt_name": "sts",
        },
        "config.json": {"matryoshka_dimensions": [4, 16]},
    }
    config = read_sentence_transformers_folder(edited(written, tmp_path, changes))
    assert (config.query_max_length, config.document_max_length) == (8, 16)
    assert config.document_template == "P: {text}"
    assert config.default_task == "sts"
    assert config.instructions == {"query": "", "document": "P: ", "passage": "P: ", "sts": "S: "}
    assert config.matryoshka_dims == [4, 16]


def test_weights_of_a_dense_layer_may_be_pickled_tensors_and_nothing_else(written: Path, tmp_path: Path) -> None:
    folder = edited(written, tmp_path, {})
    saved = load_file(written / "2_Dense" / "model.safetensors")
    torch.save(saved, folder / "2_Dense" / "pytorch_model.bin")
    model = make_embedder("qwen2", dense_sizes=[16])
    load_dense_modules(model, folder)
    assert torch.equal(model.dense.layers[0].weight, saved["linear.weight"])
    torch.save(saved | {"linear.bias": Path()}, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds Python objects, which could run code"):
        load_dense_modules(model, folder)


def test_prompts_are_exported_as_they_were(written: Path) -> None:
    assert plan_serving(read_sentence_transformers_folder(written), 16).prompts == PROMPTS


def test_what_the_caller_knows_better(written: Path, tmp_path: Path) -> None:
    folder = edited(written, tmp_path, {"config.json": {"auto_map": {"AutoModel": "modeling.Model"}}})
    config = read_sentence_transformers_folder(folder, {"attention": "bidirectional", "appends_eos": True})
    assert not config.causal
    assert config.append_eos
