"""Exports without merged weights, and the layout of LLM2Vec."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from attention_patch import patch_attention
from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.export.adapter import export_adapter
from llamafactory_embed.export.llm2vec import check_fits, export_llm2vec
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from tests.embedders import INSTRUCTION, make_config
from tests.export.checkpoints import TEXTS, train
from tests.tiny_models import save_tiny_model, tiny_tokenizer


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_an_adapter_is_served_alike_from_its_new_place(pooling: str, tmp_path: Path) -> None:
    trained = train(tmp_path, pooling=pooling)
    (trained.folder / "optimizer.pt").write_bytes(b"of no use to others")
    remarks = export_adapter(trained.folder, tmp_path / "exported")
    encoder = Encoder(tmp_path / "exported")
    np.testing.assert_allclose(encoder.encode(TEXTS), trained.embed(), atol=1e-5)
    queries = trained.embed(instruction=INSTRUCTION, as_query=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, task="next_line"), queries, atol=1e-5)
    assert not (tmp_path / "exported" / "optimizer.pt").exists()
    assert not (tmp_path / "exported" / "model.safetensors").exists()
    assert any(str(tmp_path / "base") in remark for remark in remarks)  # a folder that others do not have
    settings = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")


def test_an_adapter_that_cannot_travel_gets_one_sentence(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", adapter=False)
    with pytest.raises(ValueError, match="holds all weights and no adapter"):
        export_adapter(whole.folder, tmp_path / "exported")
    trained = train(tmp_path / "lora")
    config = EmbeddingConfig.load(trained.folder)
    replace(config, merged_adapters=[str(tmp_path)]).save(trained.folder)
    with pytest.raises(ValueError, match=r"was trained on top of .*, which others do not have: export merged weights"):
        export_adapter(trained.folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_llm2vec_layout(family: str, adapter: bool, pooling: str, tmp_path: Path) -> None:
    """Loaded as `LLM2Vec.from_pretrained` does it: a bare decoder, PEFT's adapter on it, padding on the left."""
    trained = train(tmp_path, family, adapter, pooling=pooling)
    exported = tmp_path / "exported"
    export_llm2vec(trained.folder, exported)
    decoder = AutoModel.from_pretrained(tmp_path / "base" if adapter else exported)
    if adapter:
        decoder = PeftModel.from_pretrained(decoder, str(exported)).merge_and_unload()
    patch_attention(decoder, "bidirectional")  # what its own classes do
    tokenizer = AutoTokenizer.from_pretrained(exported)
    tokenizer.padding_side = "left"
    settings = json.loads((exported / "llm2vec_config.json").read_text())
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=settings["max_length"], return_tensors="pt")
    with torch.no_grad():
        states = decoder(**batch).last_hidden_state
    vectors = []
    for text, length in zip(states, batch["attention_mask"].sum(dim=1).tolist(), strict=True):
        weights = torch.arange(1, length + 1) if settings["pooling_mode"] == "weighted_mean" else torch.ones(length)
        vectors.append((weights / weights.sum()) @ text[-length:])
    found = torch.nn.functional.normalize(torch.stack(vectors), dim=1).numpy()
    np.testing.assert_allclose(found, trained.embed(), atol=1e-5)
    assert settings == {
        "pooling_mode": pooling, "max_length": 48, "doc_max_length": 48, "skip_instruction": False,
    }  # fmt: skip


def test_what_llm2vec_does_not_support_gets_one_sentence(tmp_path: Path) -> None:
    for name, family, options, sentence in (
        (
            "causal",
            "llama",
            {"attention": "causal"},
            "is for bidirectional models, and this one has `attention: causal`",
        ),
        ("eos", "llama", {"pooling": "eos"}, "cannot pool like `pooling: eos`"),
        ("dense", "llama", {"dense_sizes": [8]}, r"has no layers behind its pooling.*`dense_sizes: \[8\]`"),
        ("phi", "phi3", {}, "has classes for llama, mistral, gemma, qwen2, not for phi3"),
    ):
        trained = train(tmp_path / name, family, **options)
        with pytest.raises(ValueError, match=sentence):
            export_llm2vec(trained.folder, tmp_path / "exported")
    with pytest.raises(ValueError, match="LLM2Vec appends no mask tokens"):
        check_fits(make_config(pooling="mask"), LlamaConfig())
    assert not (tmp_path / "exported").exists()


def test_the_adapter_of_a_language_model_becomes_one_of_llm2vec(tmp_path: Path) -> None:
    """As `stage: mntp` leaves it: no embedder yet, named by the modules of the causal language model."""
    base = save_tiny_model(tmp_path / "base")
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "mntp")
    tiny_tokenizer().save_pretrained(tmp_path / "mntp")
    assert main(["export", str(tmp_path / "mntp"), str(tmp_path / "exported"), "--layout", "llm2vec"]) == 0

    decoder: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / "exported")).eval()
    tokens = torch.tensor([tiny_tokenizer()(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        wanted = adapted.eval()(tokens, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(decoder(tokens).last_hidden_state, wanted, atol=1e-5)
        assert not np.allclose(AutoModel.from_pretrained(base)(tokens).last_hidden_state, wanted, atol=1e-3)
    assert json.loads((tmp_path / "exported" / "llm2vec_config.json").read_text()) == {
        "pooling_mode": "mean", "max_length": 512, "doc_max_length": 400, "skip_instruction": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match="is not a checkpoint of an embedder"):
        export_adapter(tmp_path / "mntp", tmp_path / "other")
