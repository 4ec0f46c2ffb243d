"""Models that our engine does not have, behind the contract of `Encoder`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from llamafactory_embed.encoder import foreign
from llamafactory_embed.encoder.foreign import SentenceTransformersEncoder
from llamafactory_embed.loading.sentence_transformers_folder import (
    UnknownModulesError,
    read_sentence_transformers_folder,
)
from tests.loading.sentence_transformers_models import PROMPTS, TEXTS, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("mpnet") / "model", "mpnet", ["mean", "max"])


@pytest.fixture(scope="module")
def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceTransformersEncoder:
    return SentenceTransformersEncoder(folder, device="cpu")


def test_prompts_are_theirs(encoder: SentenceTransformersEncoder, theirs: SentenceTransformer) -> None:
    assert encoder.dimension == theirs.get_embedding_dimension() == 64
    for name in PROMPTS:
        np.testing.assert_allclose(encoder.encode(TEXTS, task=name), theirs.encode(TEXTS, prompt_name=name), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS, task="query", role="document"), encoder.encode(TEXTS))
    np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), theirs.encode_query(TEXTS), atol=1e-6)
    each = [f"{number}: " for number in range(len(TEXTS))]
    expected = theirs.encode([prompt + text for prompt, text in zip(each, TEXTS, strict=True)])
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt=each), expected, atol=1e-6)


def test_order_windows_and_files(
    encoder: SentenceTransformersEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode(TEXTS)
    monkeypatch.setattr(foreign, "WINDOW", 2)
    found = encoder.encode(TEXTS, output_file=tmp_path / "vectors.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
    np.testing.assert_allclose(encoder.encode(TEXTS[1]), whole[1], atol=1e-6)


def test_sizes_and_lengths(encoder: SentenceTransformersEncoder) -> None:
    plain = encoder.encode(TEXTS, normalize=False, convert_to="torch")
    cut = encoder.encode(TEXTS, dimensions=8, convert_to="torch")
    torch.testing.assert_close(cut, torch.nn.functional.normalize(plain[:, :8], dim=1))
    with pytest.raises(ValueError, match="`dimensions: 65` must lie between 1 and the embedding's size 64"):
        encoder.encode(TEXTS, dimensions=65)


def test_what_nobody_knows_is_refused(encoder: SentenceTransformersEncoder) -> None:
    with pytest.raises(ValueError, match=r"Unknown task 'qery'; this model has prompts for .*did you mean `query`"):
        encoder.encode(TEXTS, task="qery")
    with pytest.raises(ValueError, match="`prompt` must be one text or one for each of the"):
        encoder.encode(TEXTS, prompt=["a"])


def test_it_says_why(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnknownModulesError) as unknown:
        read_sentence_transformers_folder(folder)
    with caplog.at_level(logging.WARNING, logger=foreign.__name__):
        SentenceTransformersEncoder(folder, device="cpu", because=str(unknown.value))
    assert [record.message for record in caplog.records if record.name == foreign.__name__] == [
        f"{unknown.value} It embeds with sentence-transformers itself, not with packed rows."
    ]
