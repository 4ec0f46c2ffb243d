"""An exported folder serves the embeddings that were trained, in every program that is installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from llamafactory_embed import Encoder
from llamafactory_embed.export.export import export_checkpoint
from llamafactory_embed.export.options import ExportOptions
from llamafactory_embed.model.embedding import EmbeddingModel
from tests.embedders import INSTRUCTION, make_config
from tests.export.checkpoints import TASKS, TEXTS, Trained, train
from tests.patience import PATIENCE
from tests.tiny_models import FAMILIES, HIDDEN_SIZE, save_tiny_model, tiny_model, tiny_tokenizer


POOLINGS = ["mean", "weighted_mean", "last", "eos", "bos", "latent", "multi_layer_latent"]
DIFFUSION = ["dream", "llada"]


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, local_files_only=True)


def assert_same(folder: Path, trained: Trained, atol: float = 1e-5) -> None:
    """sentence-transformers on the folder = the model in the trainer's memory; with and without padding."""
    loaded = load(folder)
    for batch_size in (1, len(TEXTS)):
        sizes: dict[str, Any] = {"batch_size": batch_size}
        queries = loaded.encode_query(TEXTS, prompt_name="next_line", **sizes)
        np.testing.assert_allclose(queries, trained.embed(instruction=INSTRUCTION, as_query=True), atol=atol)
        np.testing.assert_allclose(loaded.encode_document(TEXTS, **sizes), trained.embed(), atol=atol)
        symmetric = loaded.encode_document(TEXTS, prompt_name="same", **sizes)
        np.testing.assert_allclose(symmetric, trained.embed(instruction="Find alike"), atol=atol)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, adapter: bool, tmp_path: Path) -> None:
    trained = train(tmp_path, family, adapter)
    export_checkpoint(trained.folder, tmp_path / "exported")
    assert_same(tmp_path / "exported", trained)


@pytest.mark.parametrize("skip_instruction", [False, True], ids=["all", "skip"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling(pooling: str, attention: str, skip_instruction: bool, tmp_path: Path) -> None:
    trained = train(tmp_path, pooling=pooling, attention=attention, skip_instruction=skip_instruction)
    export_checkpoint(trained.folder, tmp_path / "exported")
    assert_same(tmp_path / "exported", trained)


def test_dora_on_top_of_a_merged_adapter(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    first: Any = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    first.save_pretrained(tmp_path / "first")
    backbone: Any = get_peft_model(
        first.merge_and_unload(), LoraConfig(r=2, use_dora=True, target_modules="all-linear")
    )
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data.add_(0.1 * torch.rand_like(parameter))
    config = replace(make_config(base_model=str(base), **TASKS), merged_adapters=[str(tmp_path / "first")])
    trained = Trained.save(EmbeddingModel(backbone, config).eval(), tmp_path / "checkpoint")
    export_checkpoint(trained.folder, tmp_path / "exported")
    assert_same(tmp_path / "exported", trained)


def test_transformers_alone(tmp_path: Path) -> None:
    trained = train(tmp_path, pooling="eos", attention="causal")
    export_checkpoint(trained.folder, tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "exported")(**batch).last_hidden_state
    ends = states[torch.arange(len(TEXTS)), batch["attention_mask"].sum(dim=1) - 1]
    vectors = torch.nn.functional.normalize(ends, dim=1)
    np.testing.assert_allclose(vectors.numpy(), trained.embed(), atol=1e-5)


def test_encoder_reads_the_folder(tmp_path: Path) -> None:
    trained = train(tmp_path, pooling="multi_layer_latent")
    export_checkpoint(trained.folder, tmp_path / "exported")
    encoder = Encoder(tmp_path / "exported")
    np.testing.assert_allclose(encoder.encode(TEXTS), trained.embed(), atol=1e-5)
    found = encoder.encode(TEXTS, task="next_line")
    np.testing.assert_allclose(found, trained.embed(instruction=INSTRUCTION, as_query=True), atol=1e-5)
    export_checkpoint(tmp_path / "exported", tmp_path / "again")
    assert_same(tmp_path / "again", trained)


@pytest.mark.process
def test_a_process_without_this_package_reads_it(tmp_path: Path) -> None:
    trained = [train(tmp_path / pooling, pooling=pooling, skip_instruction=True) for pooling in ("eos", "latent")]
    for number, each in enumerate(trained):
        export_checkpoint(each.folder, tmp_path / f"exported{number}")
    np.save(tmp_path / "texts.npy", np.array(TEXTS))
    code = (
        "import sys, numpy as np\n"
        "sys.modules.pop('llamafactory_embed.autoload', None)  # every start of Python loads it\n"
        "from sentence_transformers import SentenceTransformer\n"
        "texts = np.load('texts.npy').tolist()\n"
        "for number, trust in enumerate((False, True)):\n"
        "    model = SentenceTransformer(f'exported{number}', device='cpu', trust_remote_code=trust)\n"
        "    np.save(f'vectors{number}.npy', model.encode_query(texts, prompt_name='next_line'))\n"
        "assert not [name for name in sys.modules if name.startswith(('llamafactory_embed.', 'attention_patch'))]\n"
    )
    environment = {"LLAMAFACTORY_EMBED_DISABLE": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "hf")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True, timeout=PATIENCE)
    for number, each in enumerate(trained):
        vectors = np.load(tmp_path / f"vectors{number}.npy")
        np.testing.assert_allclose(vectors, each.embed(instruction=INSTRUCTION, as_query=True), atol=1e-5)


def test_the_last_of_many_tasks_can_be_the_prompt_of_queries(tmp_path: Path) -> None:
    instructions = {f"task{number}": f"Find number {number}" for number in range(9)}
    trained = train(tmp_path, instructions=instructions, symmetric_tasks=[])
    export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(query_task="task8"))
    queries = load(tmp_path / "exported").encode_query(TEXTS)
    np.testing.assert_allclose(queries, trained.embed(instruction="Find number 8", as_query=True), atol=1e-5)


@pytest.mark.parametrize("skip_instruction", [False, True], ids=["all", "skip"])
def test_two_limits(skip_instruction: bool, tmp_path: Path) -> None:
    trained = train(tmp_path, query_max_length=20, document_max_length=33, skip_instruction=skip_instruction)
    instruction = trained.tokenizer.queries(["a"], INSTRUCTION)[0]
    assert len(instruction.token_ids) == 20  # nothing is left of the text
    exported = export_checkpoint(trained.folder, tmp_path / "exported")
    assert_same(tmp_path / "exported", trained)
    assert any("20" in remark and "33" in remark for remark in exported.remarks)


def test_cut_embeddings_have_unit_length(tmp_path: Path) -> None:
    trained = train(tmp_path, matryoshka_dims=[8, 16])
    export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dimensions=8))
    whole = trained.embed()[:, :8]
    cut = load(tmp_path / "exported").encode_document(TEXTS)
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


DENSE = {"dense_sizes": [48, 16], "dense_activations": ["gelu", "identity"], "matryoshka_dims": [8, 16]}


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_layers_behind_the_pooling(pooling: str, tmp_path: Path) -> None:
    trained = train(tmp_path, pooling=pooling, **DENSE)
    export_checkpoint(trained.folder, tmp_path / "exported")
    assert_same(tmp_path / "exported", trained)
    np.testing.assert_allclose(Encoder(tmp_path / "exported").encode(TEXTS), trained.embed(), atol=1e-5)
    loaded = load(tmp_path / "exported")
    assert [type(module).__name__ for module in loaded][2:] == ["Dense", "Dense", "Normalize"]
    assert "| size of an embedding | 16 |" in (tmp_path / "exported" / "README.md").read_text("utf-8")


def test_layers_behind_the_pooling_are_cut_after_the_last(tmp_path: Path) -> None:
    trained = train(tmp_path, **DENSE)
    export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dimensions=8))
    whole = trained.embed()[:, :8]
    cut = load(tmp_path / "exported").encode_document(TEXTS)
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


def test_vectors_of_any_length_and_dot_products(tmp_path: Path) -> None:
    trained = train(tmp_path, normalize_embeddings=False, similarity="dot")
    export_checkpoint(trained.folder, tmp_path / "exported")
    loaded = load(tmp_path / "exported")
    vectors = loaded.encode_document(TEXTS)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(vectors / lengths, trained.embed(), atol=1e-5)
    assert loaded.similarity_fn_name == "dot"


def test_weights_are_rounded_once_and_the_difference_is_reported(tmp_path: Path) -> None:
    trained = train(tmp_path)
    exported = export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dtype="bfloat16"))
    with safe_open(tmp_path / "exported" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["dtype"] == "bfloat16"
    served = Encoder(tmp_path / "exported", dtype=torch.float32).encode(TEXTS)
    moved = 1 - np.sum(served * trained.embed(), axis=1).min()
    assert 1e-6 < moved < 1e-2
    assert moved / 10 < exported.rounding < 10 * moved  # other texts, the same size


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", DIFFUSION)
def test_diffusion_models_keep_their_layout(family: str, adapter: bool, tmp_path: Path) -> None:
    trained = train(tmp_path, family, adapter)
    exported = export_checkpoint(trained.folder, tmp_path / "exported")
    with safe_open(tmp_path / "base" / "model.safetensors", framework="pt") as file:
        original = set(file.keys())
    with safe_open(tmp_path / "exported" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == original
    original_config = json.loads((tmp_path / "base" / "config.json").read_text())
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["architectures"] == original_config["architectures"]
    assert config.keys() >= original_config.keys()
    assert any("original layout" in remark for remark in exported.remarks)


def test_the_tokenizer_of_the_checkpoint_is_used(tmp_path: Path) -> None:
    trained = train(tmp_path)
    longer = tiny_tokenizer().__class__.from_pretrained(trained.folder)
    longer.model_max_length = 7  # of no importance: the checkpoint's limits are
    longer.save_pretrained(trained.folder)
    export_checkpoint(trained.folder, tmp_path / "exported")
    assert load(tmp_path / "exported").max_seq_length == 48
    assert load(tmp_path / "exported").get_embedding_dimension() == HIDDEN_SIZE
