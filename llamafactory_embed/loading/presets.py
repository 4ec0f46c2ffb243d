"""How well-known embedders are used, by their names: what their files leave open.

Some repositories say nothing of prompts, some hide their attention in code of their own, some name EOS where
transformers 5 no longer reads it. A row of `PRESETS` says what its authors do. An architecture alone is never enough:
a model is recognised by its name on the hub, the name of its folder, or `_name_or_path` in its config.json.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..foreign import read_json_object
from ..hparams.embedding import EmbeddingOptions
from ..model.embedding_config import EmbeddingConfig
from ..model.pooling import Pooling
from .sentence_transformers_folder import Attention, find_attention, read_architecture, read_saved_prompts


@dataclass(frozen=True)
class Preset:
    """A row: one way of embedding, and the models that share it."""

    title: str
    names: str
    """A regular expression for the whole name on the hub, the owner in front of it."""
    pooling: Pooling
    max_length: int
    query_template: str = "{text}"
    document_template: str = "{text}"
    instructions: Mapping[str, str] = field(default_factory=dict)
    """The instruction of each task; that of `query` is also for queries without a task."""
    attention: Attention | None = None
    """None: as the model's configuration says."""
    appends_eos: bool | None = None
    """True where the authors append EOS and their tokenizer.json does not; None: as the tokenizer's files say."""
    matryoshka_dims: tuple[int, ...] = ()
    needs_modules: bool = False
    """Whether weights lie in modules of sentence-transformers, so that the language model alone is not the model."""
    refusal: str = ""
    """Why the model cannot be loaded, as the rest of a sentence."""

    def config(self, folder: Path) -> EmbeddingConfig:
        """For a plain model of transformers in that folder."""
        if self.needs_modules:
            raise ValueError(
                f"{folder} is {self.title} without its modules.json, and the layers behind its pooling lie in folders "
                "that modules.json names: copy the whole repository."
            )
        options = EmbeddingOptions(
            attention=self.attention or find_attention(folder, read_architecture(folder)),
            pooling=self.pooling,
        )
        known = EmbeddingConfig.from_options(options, self.max_length, appends_eos=self.appends_eos or False)
        return dataclasses.replace(known, **self._prompts(), matryoshka_dims=list(self.matryoshka_dims) or None)

    def settings(self, folder: Path) -> dict[str, Any]:
        """For a folder of sentence-transformers: fields of its configuration that this row knows better than its
        files. Prompts are such if the files have none, or the same ones."""
        settings: dict[str, Any] = {}
        if self.attention is not None:
            settings["attention"] = self.attention
        if self.appends_eos is not None:
            settings["appends_eos"] = self.appends_eos
        if self.matryoshka_dims:
            settings["matryoshka_dims"] = list(self.matryoshka_dims)
        written = {name: prompt for name, prompt in read_saved_prompts(folder).items() if prompt}
        if all(self._prompt(name) == prompt for name, prompt in written.items()):
            settings |= self._prompts()
        return settings

    def _prompts(self) -> dict[str, Any]:
        return {
            "query_template": self.query_template,
            "document_template": self.document_template,
            "instructions": {"query": ""} | dict(self.instructions),
            "default_task": "query",
        }

    def _prompt(self, name: str) -> str | None:
        """What this row writes in front of a text of that task, of a query or of a document."""
        if name in self.instructions:
            return self.query_template.partition("{text}")[0].replace("{instruction}", self.instructions[name])
        templates = {"query": self.query_template, "document": self.document_template}
        return templates.get(name, "{text}").partition("{text}")[0]


RETRIEVAL = "Given a web search query, retrieve relevant passages that answer the query"
BGE_ENGLISH = "Represent this sentence for searching relevant passages: {text}"
E5_INSTRUCT = "Instruct: {instruction}\nQuery: {text}"

# Where a row names mteb, its facts are those of the model's entry in mteb 2 (`mteb/models/model_implementations`),
# which the authors or mteb's maintainers run for the leaderboard.
PRESETS = (
    # The model card, and `config_sentence_transformers.json`: no space behind "Query:". Causal, last token; the
    # tokenizer ends a text with <|endoftext|>. mteb: qwen3_models.py.
    Preset(
        "Qwen3-Embedding",
        r"Qwen/Qwen3-Embedding-(0\.6|4|8)B",
        "last",
        32768,
        query_template="Instruct: {instruction}\nQuery:{text}",
        instructions={"query": RETRIEVAL},
    ),
    # Wang et al. 2024 and mteb's e5_instruct.py: <s> text </s>, of which tokenizer.json makes only <s> since
    # transformers 5 (mteb pull request 5237); 4096 tokens in the model card.
    Preset(
        "e5-mistral-7b-instruct",
        r"intfloat/e5-mistral-7b-instruct",
        "last",
        4096,
        query_template=E5_INSTRUCT,
        instructions={"query": RETRIEVAL},
        appends_eos=True,
    ),
    # mteb: e5_instruct.py. XLM-R, mean.
    Preset(
        "multilingual-e5-large-instruct",
        r"intfloat/multilingual-e5-large-instruct",
        "mean",
        512,
        query_template=E5_INSTRUCT,
        instructions={"query": RETRIEVAL},
    ),
    # Wang et al. 2022; mteb: e5_models.py. BERT and XLM-R, mean; both prefixes are part of the training.
    Preset(
        "E5",
        r"intfloat/(multilingual-e5-(small|base|large)|e5-(small|base|large)(-v2)?)",
        "mean",
        512,
        query_template="query: {text}",
        document_template="passage: {text}",
    ),
    # Xiao et al. 2023; mteb: bge_models.py. BERT, the first token.
    Preset("BGE v1.5 (en)", r"BAAI/bge-(small|base|large)-en-v1\.5", "bos", 512, query_template=BGE_ENGLISH),
    Preset(
        "BGE v1.5 (zh)",
        r"BAAI/bge-(small|base|large)-zh-v1\.5",
        "bos",
        512,
        query_template="为这个句子生成表示以用于检索相关文章：{text}",
    ),
    # Chen et al. 2024, the dense vectors; mteb: bge_models.py. XLM-R, the first token, no prompts.
    Preset("BGE-M3, dense", r"BAAI/bge-m3", "bos", 8192),
    # vLLM's list of supported models: the code of the 7B model attends to both sides, that of the 1.5B model is
    # causal whatever its config.json says. Both tokenizers end a text with <|endoftext|> in code of their own.
    # mteb: gte_models.py.
    Preset(
        "gte-Qwen2-7B-instruct",
        r"Alibaba-NLP/gte-Qwen2-7B-instruct",
        "last",
        32768,
        query_template=E5_INSTRUCT,
        instructions={"query": RETRIEVAL},
        attention="bidirectional",
        appends_eos=True,
    ),
    Preset(
        "gte-Qwen2-1.5B-instruct",
        r"Alibaba-NLP/gte-Qwen2-1\.5B-instruct",
        "last",
        32768,
        query_template=E5_INSTRUCT,
        instructions={"query": RETRIEVAL},
        attention="causal",
        appends_eos=True,
    ),
    # The model card: the first token, no prompts; mteb: gte_models.py.
    Preset("gte-modernbert-base", r"Alibaba-NLP/gte-modernbert-base", "bos", 8192),
    # Zhao et al. 2025 (KaLM-Embedding-V2): the causal mask is removed, mean; sizes of the model card. The template has
    # a space on both sides of the line break (mteb: kalm_models.py), and 512 tokens are what it is judged with.
    Preset(
        "KaLM-Embedding v2 and v2.5",
        r"(HIT-TMG|KaLM-Embedding)/KaLM-embedding-multilingual-mini-instruct-v2(\.5)?",
        "mean",
        512,
        query_template="Instruct: {instruction} \n Query: {text}",
        instructions={"query": "Given a query, retrieve documents that answer the query"},
        attention="bidirectional",
        matryoshka_dims=(64, 128, 256, 512, 896),
    ),
    # Schechter Vera et al. 2025: mean, two Dense layers, both sides (`use_bidirectional_attention`); the prompts of
    # its config_sentence_transformers.json.
    Preset(
        "EmbeddingGemma",
        r"google/embeddinggemma-300m.*",
        "mean",
        2048,
        query_template="task: {instruction} | query: {text}",
        document_template="title: none | text: {text}",
        instructions={"query": "search result"},
        matryoshka_dims=(128, 256, 512, 768),
        needs_modules=True,
    ),
    # The model cards of the repositories in which an adapter is merged (Akram et al. 2026): the last token, and the
    # prefixes of mteb's jina_models.py.
    Preset(
        "jina-embeddings-v5-text-small, retrieval",
        r"jinaai/jina-embeddings-v5-text-small-retrieval",
        "last",
        32768,
        query_template="Query: {text}",
        document_template="Document: {text}",
        matryoshka_dims=(32, 64, 128, 256, 512, 768, 1024),
    ),
    Preset(
        "jina-embeddings-v5-text",
        r"jinaai/jina-embeddings-v5-text-(small|nano)",
        "last",
        32768,
        refusal="holds an adapter for each task, chosen by code of its own: load jinaai/jina-embeddings-v5-text-small-"
        "retrieval, whose weights have one merged",
    ),
    # Merrick et al. 2024; mteb: arctic_models.py. BERT, the first token; version 2 large is XLM-R.
    Preset(
        "Arctic-Embed",
        r"Snowflake/snowflake-arctic-embed-((xs|s|m|l)|m-v1\.5)",
        "bos",
        512,
        query_template=BGE_ENGLISH,
    ),
    Preset(
        "Arctic-Embed 2.0, large",
        r"Snowflake/snowflake-arctic-embed-l-v2\.0",
        "bos",
        8192,
        query_template="query: {text}",
        matryoshka_dims=(256, 1024),
    ),
    Preset(
        "Arctic-Embed 2.0, medium",
        r"Snowflake/snowflake-arctic-embed-(m-v2\.0|m-long)",
        "bos",
        8192,
        refusal="has an architecture that transformers does not have: it needs code of its own",
    ),
    # Lee et al. 2024: every token reads the latents, and the mean over the tokens is the embedding. Our latent pooling
    # is the other way round (the latents read the tokens), so that the weights do not fit.
    Preset(
        "NV-Embed",
        r"nvidia/NV-Embed-v[12]",
        "latent",
        32768,
        refusal="pools by letting each token read the latents, which needs code of its own; `pooling: latent` here "
        "lets the latents read the tokens, so that its weights do not fit",
    ),
)


def find_preset(name: str, folder: Path) -> Preset | None:
    """The row of a model by its name on the hub, or of a local copy by its folder or `_name_or_path`. A folder named
    like the repository, with or without the owner, is a copy of it."""
    config = folder / "config.json"
    original = str(read_json_object(config).get("_name_or_path", "")) if config.is_file() else ""
    cached = [parent.name for parent in folder.parents if parent.name.startswith("models--")]
    for candidate in (name, folder.name, *cached, original):
        for preset in PRESETS:
            if matches(preset, candidate.rstrip("/")):
                if preset.refusal:
                    raise ValueError(f"{name} {preset.refusal}.")
                return preset
    return None


def matches(preset: Preset, name: str) -> bool:
    """Whether a row is for the model of that name: `owner/name`, a path that ends so or in the name alone, or the
    folder `models--owner--name` of the hub's cache."""
    owner_and_name = name.replace("\\", "/").removeprefix("models--").replace("--", "/").split("/")
    name_of_row = preset.names.rpartition("/")[2]
    if len(owner_and_name) == 1:
        return re.fullmatch(name_of_row, owner_and_name[-1]) is not None
    return re.fullmatch(preset.names, "/".join(owner_and_name[-2:])) is not None
