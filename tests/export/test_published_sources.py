"""Published checkpoints are exported like our own: the folder embeds as the source does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.loading.as_checkpoint import as_checkpoint
from llamafactory_embed.loading.source import find_source
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from tests.embedders import PROSE
from tests.loading.published import (
    MNTP,
    SUPERVISED,
    copy_llm2vec,
    expected_of_llm2vec,
    save_pooling_and_attention,
    save_wrapped,
)


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_a_chain_of_llm2vec_for_sentence_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_llm2vec(tmp_path))
    assert main(["export", MNTP, "exported", "--adapters", SUPERVISED, "--no-skip-instruction"]) == 0
    assert f"Taken as: LLM2Vec: adapter chain {MNTP} → {SUPERVISED} on base" in capsys.readouterr().out
    expected = expected_of_llm2vec()
    vectors = expected["chain, skip_instruction false"]
    model = SentenceTransformer("exported", device="cpu")
    np.testing.assert_allclose(model.encode_document(expected["texts"]), vectors["documents"], **CLOSE)
    prompt = f"{expected['instruction']} "
    np.testing.assert_allclose(model.encode(expected["texts"], prompt=prompt), vectors["queries"], **CLOSE)


@pytest.mark.parametrize("kind", ["pooling-and-attention", "diffullama", "llm2vec"])
def test_a_source_as_a_checkpoint_of_ours(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"attention": "bidirectional"}
    if kind == "pooling-and-attention":
        name, _, _ = save_pooling_and_attention(tmp_path, "multi_layer_latent", causal=False)
        settings["latent_heads"] = 2
    elif kind == "diffullama":
        name = save_wrapped(tmp_path / "wrapped")
        settings["pooling"] = "mean"
    else:
        name, settings = copy_llm2vec(tmp_path) / SUPERVISED, {}
    source = find_source(name, settings)
    with as_checkpoint(source) as folder:
        assert EmbeddingConfig.load(folder).pooling == source.config.pooling
        found = Encoder(folder, device="cpu").encode(PROSE[:2])
        with as_checkpoint(find_source(folder)) as again:
            assert again == folder  # ours as it is
    np.testing.assert_allclose(found, Encoder(source, device="cpu").encode(PROSE[:2]), **CLOSE)


def test_an_export_does_not_replace_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_llm2vec(tmp_path))
    assert main(["export", MNTP, MNTP, "--overwrite"]) == 1
    assert "would replace the checkpoint" in capsys.readouterr().err
