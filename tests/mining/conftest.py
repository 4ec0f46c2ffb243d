"""Tiny models and a little data to mine in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import make_embedder
from tests.tiny_models import VOCABULARY_SIZE, save_tiny_model, tiny_tokenizer


WORDNET = Path(__file__).parents[2] / "data" / "wordnet"
INSTRUCTION = "Given a definition, retrieve the verb that it defines"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedder of ours."""
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    base = save_tiny_model(folder.parent / "base")
    save_checkpoint(make_embedder(base_model=str(base), instructions={"verbs": INSTRUCTION}), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder with weights large enough for scores to differ."""
    folder = tmp_path_factory.mktemp("models") / "cross_encoder"
    config = BertConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=256, num_labels=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_dir` with the data set `verbs`: rows of several positives and negatives."""
    folder = tmp_path_factory.mktemp("data")
    lines = (WORDNET / "gloss_to_verb.jsonl").read_text("utf-8").splitlines()[:40]
    (folder / "verbs.jsonl").write_text("\n".join(lines), "utf-8")
    entry = {"file_name": "verbs.jsonl", "formatting": "retrieval", "instruction": INSTRUCTION}
    (folder / "dataset_info.json").write_text(json.dumps({"verbs": entry}), "utf-8")
    return folder
