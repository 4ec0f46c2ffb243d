"""`eval` and `mine` take published checkpoints, with settings for those that do not say how they embed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation.models import list_models, load_encoder
from llamafactory_embed.evaluation.options import make_evaluation_options
from llamafactory_embed.loading.source import find_source
from llamafactory_embed.mining.embedders import load_embedder
from llamafactory_embed.mining.options import STEP_OPTIONS
from tests.embedders import PROSE
from tests.loading.published import SUPERVISED, copy_llm2vec
from tests.tiny_models import save_tiny_model


LAST = {"pooling": "last", "attention": "causal"}


def options(*checkpoints: str, **more: Any) -> Any:
    return make_evaluation_options({"checkpoints": list(checkpoints), "tasks": ["x"], **more}, "test")


def test_a_chain_and_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another adapter anywhere in the chain is another model, whose results are kept apart."""
    monkeypatch.chdir(copy_llm2vec(tmp_path))
    (judged,) = list_models(options(SUPERVISED), [])
    assert judged.label.endswith(SUPERVISED)
    (again,) = list_models(options(SUPERVISED), [])
    assert again.revision == judged.revision
    path = Path("base", "model.safetensors")
    save_file({name: each + 1 for name, each in load_file(path).items()}, path)
    (other,) = list_models(options(SUPERVISED), [])
    assert other.revision != judged.revision


def test_a_plain_model_asks_and_its_settings_are_part_of_the_experiment(tmp_path: Path) -> None:
    plain = save_tiny_model(tmp_path / "plain")
    with pytest.raises(ValueError, match="name `pooling` and `attention`"):
        list_models(options(str(plain)), [])
    (judged,) = list_models(options(str(plain), **LAST), [])
    assert judged.experiment == LAST
    shutil.copytree(plain, tmp_path / "baseline")
    assert len(list_models(options(str(plain), baseline=[str(tmp_path / "baseline"), "bm25"], **LAST), [])) == 3
    encoder = load_encoder(find_source(plain, LAST), options(str(plain), **LAST))
    np.testing.assert_array_equal(encoder.encode(PROSE[0]), Encoder(plain, **LAST).encode(PROSE[0]))
    assert encoder.overrides == LAST


def test_mining_with_a_plain_model(tmp_path: Path) -> None:
    plain = save_tiny_model(tmp_path / "plain")
    with pytest.raises(ValueError, match="name `pooling` and `attention`"):
        load_embedder(str(plain), "cpu")
    load_embedder(str(plain), "cpu", settings=LAST).write_documents(PROSE[:2], "", tmp_path / "vectors.npy")
    expected = Encoder(plain, device="cpu", **LAST).encode(PROSE[:2])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-6)
    assert set(LAST) <= set(STEP_OPTIONS["embed"])  # other settings are other vectors
    with pytest.raises(ValueError, match="`query_prompt` is for sentence-transformers models"):
        load_embedder(str(plain), "cpu", "query: ", settings=LAST)
