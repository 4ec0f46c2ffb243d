"""The token that `pooling: mask` appends: that of the family or of a trained checkpoint, or one that is named."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llamafactory_embed.loading.embedder import with_mask_token
from llamafactory_embed.model.mask_token import MaskedTokenRecord, save_mask_embedding
from tests.embedders import make_config
from tests.tiny_models import save_tiny_model


def resolve(folder: Path, asked: str | None = None) -> str | None:
    arguments: Any = Namespace(
        model_name_or_path=str(folder), adapter_name_or_path=None, adapter_folder=None, trust_remote_code=False,
        model_revision="main", hf_hub_token=None, cache_dir=None,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return with_mask_token(make_config(pooling="mask"), asked, tokenizer, arguments).mask_token


def test_the_family_has_one(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "dream", "dream")
    assert resolve(folder) == "<|mask|>"
    assert resolve(folder, "eos") == "</s>"


def test_other_models_are_told_or_trained_first(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"has no mask token: name one that it has, `mask_token: eos`"):
        resolve(folder)
    assert resolve(folder, "</s>") == "</s>"
    MaskedTokenRecord("<pad>", 2, shift=True).save(folder)  # trained with a token that it had
    assert resolve(folder) == "<pad>"
    save_mask_embedding(folder, torch.zeros(32))  # beside an adapter, outside of the matrix
    with pytest.raises(ValueError, match=r"The embedding of '<pad>' lies beside the adapter .*: merge the adapter"):
        resolve(folder)
