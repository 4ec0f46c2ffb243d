"""Each row of the presets: a tiny random model of its architecture, whose files say as little as the published ones,
embeds what its authors' settings make of it in sentence-transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import AutoTokenizer

from llamafactory_embed import Encoder
from llamafactory_embed.loading.checkpoint import load_backbone
from llamafactory_embed.loading.presets import PRESETS, Preset, find_preset, matches
from llamafactory_embed.loading.sentence_transformers_folder import (
    MODEL_SETTINGS,
    MODULES_NAME,
    load_sentence_transformers_folder,
    read_sentence_transformers_folder,
)
from llamafactory_embed.model.embedding import EmbeddingModel

from .sentence_transformers_models import LENGTH, TEXTS, tokenizer, write_model
from .test_sentence_transformers_folder import open_theirs


@dataclass(frozen=True)
class Published:
    """What is published under a name: an architecture, and the prompts that its authors write."""

    architecture: str
    query: str
    document: str = ""
    eos: bool = False
    """Whether the authors end a text with EOS."""
    bidirectional: bool = False
    model: dict[str, Any] = field(default_factory=dict)


WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
REPRESENT = "Represent this sentence for searching relevant passages: "
PUBLISHED = {
    "Qwen/Qwen3-Embedding-0.6B": Published("qwen3", WEB),
    "intfloat/e5-mistral-7b-instruct": Published("mistral", f"{WEB} ", eos=True),
    "intfloat/multilingual-e5-large-instruct": Published("xlm-roberta", f"{WEB} "),
    "intfloat/e5-base-v2": Published("bert", "query: ", "passage: "),
    "BAAI/bge-small-en-v1.5": Published("bert", REPRESENT),
    "BAAI/bge-large-zh-v1.5": Published("bert", "为这个句子生成表示以用于检索相关文章："),
    "BAAI/bge-m3": Published("xlm-roberta", ""),
    "Alibaba-NLP/gte-Qwen2-7B-instruct": Published("qwen2", f"{WEB} ", eos=True, bidirectional=True),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Published("qwen2", f"{WEB} ", eos=True),
    "Alibaba-NLP/gte-modernbert-base": Published("modernbert", ""),
    "KaLM-Embedding/KaLM-embedding-multilingual-mini-instruct-v2.5": Published(
        "qwen2",
        "Instruct: Given a query, retrieve documents that answer the query \n Query: ",
        bidirectional=True,
    ),
    "google/embeddinggemma-300m": Published(
        "gemma3",
        "task: search result | query: ",
        "title: none | text: ",
        model={"use_bidirectional_attention": True, "dense": [(48, nn.Identity()), (32, nn.Identity())]},
    ),
    "jinaai/jina-embeddings-v5-text-small-retrieval": Published("qwen3", "Query: ", "Document: "),
    "Snowflake/snowflake-arctic-embed-m": Published("bert", REPRESENT),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Published("xlm-roberta", "query: "),
}
POOLINGS = {"mean": "mean", "last": "lasttoken", "bos": "cls"}
LONG = 128  # tokens: room for the instruction


def the_preset(name: str) -> Preset:
    found = find_preset(name, Path("/nowhere"))
    assert found is not None
    return found


def write_theirs(folder: Path, name: str) -> Path:
    """The model with the settings of its authors, as sentence-transformers writes it."""
    published = PUBLISHED[name]
    turned = {"is_causal": False} if published.bidirectional else {}
    return write_model(
        folder,
        published.architecture,
        POOLINGS[the_preset(name).pooling],
        prompts={"query": published.query, "document": published.document},
        ends_with_eos=published.eos,
        **turned,
        **published.model,
    )


def write_published(theirs: Path, folder: Path, name: str) -> Path:
    """The same weights with the files as they are published: no prompts, no EOS, attention in code of its own."""
    published = PUBLISHED[name]
    shutil.copytree(theirs, folder)
    settings = json.loads((folder / MODEL_SETTINGS).read_text("utf-8")) | {"prompts": {}}
    (folder / MODEL_SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if the_preset(name).attention is not None:
        config |= {"auto_map": {"AutoModel": "modeling.Model"}, "is_causal": not config.get("is_causal", True)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if published.eos:
        plain = tokenizer(ends_with_eos=False)
        plain.model_max_length = LENGTH
        plain.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_embeds_as_its_authors_do(name: str, tmp_path: Path) -> None:
    preset = the_preset(name)
    theirs_in = write_theirs(tmp_path / "theirs", name)
    theirs = open_theirs(theirs_in)
    expected = {"query": theirs.encode_query(TEXTS), "document": theirs.encode_document(TEXTS)}

    def assert_same(ours: Encoder) -> None:
        np.testing.assert_allclose(ours.encode(TEXTS, role="query"), expected["query"], atol=1e-5)
        np.testing.assert_allclose(ours.encode(TEXTS, task="query"), expected["query"], atol=1e-5)
        np.testing.assert_allclose(ours.encode(TEXTS), expected["document"], atol=1e-5)

    published = write_published(theirs_in, tmp_path / "published", name)
    config = read_sentence_transformers_folder(published, preset.settings(published))
    read = Encoder(load_sentence_transformers_folder(published, config), AutoTokenizer.from_pretrained(published))
    assert_same(read)

    (published / MODULES_NAME).unlink()
    if preset.needs_modules:
        with pytest.raises(ValueError, match=r"EmbeddingGemma without its modules\.json"):
            preset.config(published)
        return
    lengths = {"query_max_length": LENGTH, "document_max_length": LENGTH}
    plain = EmbeddingModel(load_backbone(published, preset.config(published)), preset.config(published))
    assert_same(Encoder(plain.eval(), AutoTokenizer.from_pretrained(published), overrides=lengths))


def test_every_row_is_tried_or_refuses() -> None:
    tried = {the_preset(name).title for name in PUBLISHED}
    assert tried == {preset.title for preset in PRESETS if not preset.refusal}


@pytest.mark.parametrize("name", ["nvidia/NV-Embed-v2", "jinaai/jina-embeddings-v5-text-small"])
def test_what_needs_code_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} .* code of its own"):
        find_preset(name, Path("/nowhere"))


def test_prompts_of_the_folder_are_kept(tmp_path: Path) -> None:
    """A model that was trained further with prompts of its own is not read with those of its start."""
    folder = write_model(tmp_path / "bge-small-en-v1.5", "bert", "cls", prompts={"query": "find: "})
    preset = find_preset(str(folder), folder)
    assert preset is not None
    config = read_sentence_transformers_folder(folder, preset.settings(folder))
    assert config.instructions["query"] == "find: "
    assert config.query_template == "verbatim"


def test_any_instruction_is_written_into_the_template(tmp_path: Path) -> None:
    name = "Qwen/Qwen3-Embedding-4B"
    folder = write_model(tmp_path / "model", "qwen3", "lasttoken", prompts={"query": WEB})
    config = read_sentence_transformers_folder(folder, the_preset(name).settings(folder))
    model = load_sentence_transformers_folder(folder, config)
    ours = Encoder(model, AutoTokenizer.from_pretrained(folder)).encode(TEXTS, prompt="Find it")
    np.testing.assert_allclose(ours, open_theirs(folder).encode(TEXTS, prompt="Instruct: Find it\nQuery:"), atol=1e-5)


QWEN = next(preset for preset in PRESETS if preset.title == "Qwen3-Embedding")


@pytest.mark.parametrize(
    ("name", "is_it"),
    [
        ("Qwen/Qwen3-Embedding-8B", True),
        ("Qwen3-Embedding-0.6B", True),
        ("/models/Qwen/Qwen3-Embedding-4B/", True),
        ("/cache/models--Qwen--Qwen3-Embedding-4B", True),
        ("/models/mine/Qwen3-Embedding-4B", False),
        ("someone/Qwen3-Embedding-0.6B", False),
        ("Qwen/Qwen3-Embedding-0.6B-finetuned", False),
        ("Qwen/Qwen3-0.6B", False),
    ],
)
def test_names(name: str, is_it: bool) -> None:
    assert matches(QWEN, name.rstrip("/")) is is_it


def test_a_local_copy_is_known_by_its_names(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-Embedding-4B" / "snapshots" / "0123"
    copy, stranger = tmp_path / "Qwen3-Embedding-4B", tmp_path / "stranger"
    for folder in (snapshot, copy, stranger):
        folder.mkdir(parents=True)
    assert find_preset(str(snapshot), snapshot) is QWEN
    assert find_preset(str(copy), copy) is QWEN
    assert find_preset(str(stranger), stranger) is None
    (stranger / "config.json").write_text(json.dumps({"_name_or_path": "Qwen/Qwen3-Embedding-4B"}), encoding="utf-8")
    assert find_preset(str(stranger), stranger) is QWEN


def as_page_row(preset: Preset) -> str:
    """How docs/presets.md writes a row."""

    def code(text: str) -> str:
        return f"`{text}`".replace("\n", "⏎").replace("|", "\\|")

    models = code(preset.names.replace("\\.", "."))
    if preset.refusal:
        return f"| {preset.title} | {models} | refused: {preset.refusal} | | | |"
    attention = preset.attention or "its configuration's"
    eos = ", EOS appended" if preset.appends_eos else ""
    prompts = code(preset.query_template), code(preset.document_template)
    return f"| {preset.title} | {models} | {attention} | {preset.pooling}{eos} | {' | '.join(prompts)} |"


def test_the_page_has_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "presets.md").read_text("utf-8")
    table = page.partition("|---|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [as_page_row(each) for each in PRESETS]
