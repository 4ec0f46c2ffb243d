"""`eval` and `mine` take published checkpoints, with settings for those that do not say how they embed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from mteb.types import PromptType
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation.models import list_models, load_encoder
from llamafactory_embed.evaluation.mteb_encoder import MtebEncoder
from llamafactory_embed.evaluation.options import make_evaluation_options
from llamafactory_embed.loading.sentence_transformers_folder import UnknownModulesError
from llamafactory_embed.loading.source import find_source
from llamafactory_embed.mining.embedders import load_embedder
from llamafactory_embed.mining.options import STEP_OPTIONS
from tests.embedders import PROSE
from tests.loading.published import SUPERVISED, copy_llm2vec
from tests.loading.sentence_transformers_models import TEXTS, write_model
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


# ------------------------------- folders of sentence-transformers -------------------------------

PROMPTS = {"query": "Find:\n ", "document": "Line: ", "STS": "Alike? ", "Retrieval-query": "Search: ", "mine": "x"}
PACKED = [
    ("llama", "lasttoken", [(16, torch.nn.Tanh())], PROMPTS),
    ("bert", "mean", [], {"query": ""}),
    ("bert", "cls", [], {"query": "", "passage": "never read by mteb: "}),
]
TASKS = [("Retrieval", role) for role in ("query", "document")] + [("STS", None), ("Clustering", None)]


@pytest.mark.filterwarnings("ignore:Task name")
@pytest.mark.filterwarnings("ignore:Some prompts")
@pytest.mark.parametrize(("model_type", "pooling", "dense", "prompts"), PACKED, ids=["prompts", "none", "half"])
def test_eval_and_mteb_embed_a_folder_alike(
    model_type: str, pooling: str, dense: Any, prompts: dict[str, str] | None, tmp_path: Path
) -> None:
    """The packed engine reads what mteb's wrapper of sentence-transformers reads, for every kind of text."""
    from mteb.models import SentenceTransformerEncoderWrapper

    folder = write_model(tmp_path / "model", model_type, pooling, dense, prompts=prompts)
    others: dict[str, Any] = {"prompts": {"query": "of another model"}, "dimensions": [8]}
    (judged,) = list_models(options(str(folder), names=["a/b"], output=str(tmp_path / "results"), **others), [])
    assert judged.label == "a/b"
    assert judged.experiment == {}
    packed = judged.open()
    assert isinstance(packed, MtebEncoder)
    theirs = SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))
    for kind, role in TASKS:
        task: Any = SimpleNamespace(name="NewTask", type=kind)
        how: Any = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
        how["prompt_type"] = None if role is None else PromptType(role)
        inputs = DataLoader(Dataset.from_dict({"text": TEXTS}), batch_size=4)
        found, expected = packed.encode(inputs, **how), theirs.encode(inputs, show_progress_bar=False, **how)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(packed.similarity(found, found), theirs.similarity(found, found), atol=1e-5)
    packed.close()


def test_prompts_and_layers_are_part_of_a_folders_revision(tmp_path: Path) -> None:
    """Vectors and results are kept by it."""
    folder = write_model(tmp_path / "model", "llama", "mean", [(16, torch.nn.Tanh())], prompts=PROMPTS)
    revisions = [list_models(options(str(folder)), [])[0].revision]
    (layer,) = folder.glob("*_Dense/model.safetensors")
    save_file({name: each + 1 for name, each in load_file(layer).items()}, layer)
    revisions.append(list_models(options(str(folder)), [])[0].revision)
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("Find:", "Seek:"))
    revisions.append(list_models(options(str(folder)), [])[0].revision)
    assert len(set(revisions)) == 3


def test_unknown_modules_are_left_to_the_package(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path / "model", "mpnet", ["mean", "max"], prompts=PROMPTS)
    (judged,) = list_models(options(str(folder)), [])
    theirs = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_array_equal(judged.open().model.encode(TEXTS), theirs.encode(TEXTS))
    load_embedder(str(folder), "cpu").write_queries(TEXTS, [""] * len(TEXTS), tmp_path / "queries.npy")
    np.testing.assert_allclose(np.load(tmp_path / "queries.npy"), theirs.encode_query(TEXTS), atol=1e-5)
    assert caplog.text.count("embeds with sentence-transformers itself") == 2  # once for each loaded model
    with pytest.raises(UnknownModulesError, match="needs sentence-transformers"):
        list_models(options(str(folder), pooling="mean"), [])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS, {"query": ""}], ids=["prompts", "none"])
def test_mining_reads_what_sentence_transformers_reads(
    prompts: dict[str, str] | None, given: bool, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", "llama", "mean", prompts=prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    own = {"query_prompt": " {instruction}?\n ", "document_prompt": ""} if given else {}
    embedder = load_embedder(str(folder), "cpu", **own)
    instructions = [str(number % 2) for number in range(len(TEXTS))]
    embedder.write_queries(TEXTS, instructions, tmp_path / "queries.npy")
    embedder.write_documents(TEXTS, "", tmp_path / "documents.npy")
    queries, documents = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)
    if given:
        queries = theirs.encode([f" {each}?\n {text}" for each, text in zip(instructions, TEXTS, strict=True)])
        documents = theirs.encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "queries.npy"), unit(queries), atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "documents.npy"), unit(documents), atol=1e-5)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
