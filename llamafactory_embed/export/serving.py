"""What sentence-transformers has to be told so that it prepares and pools texts as in training, and which programs can
load the exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from transformers import PretrainedConfig

from attention_patch import HYBRIDS

from ..data.prompts import parse_template
from ..hparams.suggestion import suggest
from ..model.embedding_config import EmbeddingConfig
from ..model.pooling import LatentPooling
from .weights import is_diffusion


# How sentence-transformers calls our poolings (`1_Pooling/config.json`), and which of them read the token that an
# instruction stands in front of rather than all tokens: for these `skip_instruction` changes nothing.
POOLING_MODES = {
    "mean": "mean_tokens",
    "weighted_mean": "weightedmean_tokens",
    "last": "lasttoken",
    "eos": "lasttoken",
    "bos": "cls_token",
}
PICKS_ONE_TOKEN = ("last", "eos", "bos")

QUERY, DOCUMENT = "query", "document"  # the prompts that every program knows by name

# The architectures of decoders that text-embeddings-inference has, by `model_type`.
TEI_MODELS = ("llama", "mistral", "qwen2", "qwen3")
VLLM_COMMAND = "vllm serve {folder} --runner pooling"
TEI_COMMAND = "text-embeddings-router --model-id {folder} --port 8080"


@dataclass(frozen=True)
class Serving:
    """How an exported folder serves a checkpoint."""

    prompts: dict[str, str]
    """What is written before a text, by name: `query`, `document`, and one for each task that was trained."""
    query_length: int
    document_length: int
    dimensions: int | None
    """Embeddings are cut to this size; None: whole."""
    needs_code: bool
    """Whether sentence-transformers' own modules cannot pool like this, so that the folder brings a module."""

    @property
    def max_length(self) -> int:
        return max(self.query_length, self.document_length)


def plan_serving(
    config: EmbeddingConfig, size: int, query_task: str | None = None, dimensions: int | None = None
) -> Serving:
    """What to write for embeddings of that size; refuses what sentence-transformers has no place for."""
    if dimensions is not None and dimensions not in (*(config.matryoshka_dims or []), size):
        trained = sorted({*(config.matryoshka_dims or []), size})
        raise ValueError(
            f"`--dimensions {dimensions}` was not trained; this model has {', '.join(map(str, trained))}."
        )
    if config.pooling == "mask":
        raise ValueError(
            "sentence-transformers appends no mask tokens, which `pooling: mask` reads: serve this checkpoint with "
            "`Encoder` or `llamafactory-embed serve`."
        )
    if config.multi_vector and config.skip_instruction:
        raise ValueError(
            "The MultiVectorEncoder of sentence-transformers keeps the vectors of a prompt, which `skip_instruction: "
            "true` leaves out: serve this checkpoint with `Encoder`."
        )
    return Serving(
        prompts=collect_prompts(config, query_task),
        query_length=config.query_max_length,
        document_length=config.document_max_length,
        dimensions=None if dimensions == size else dimensions,
        needs_code=needs_code(config),
    )


def needs_code(config: EmbeddingConfig) -> bool:
    """Whether the pooling has weights, or leaves out an instruction token by token. (sentence-transformers leaves out
    as many tokens as the prompt has when it stands alone, which is another number where prompt and text share a
    token.)"""
    if config.pooling in get_args(LatentPooling):
        return True
    return config.skip_instruction and config.pooling not in PICKS_ONE_TOKEN


def collect_prompts(config: EmbeddingConfig, query_task: str | None = None) -> dict[str, str]:
    """The prompt of each task, and under `query` that of `query_task`, of the only task, or of the model's own."""
    tasks = {
        name: _prompt(config.query_template, instruction, "query_template")
        for name, instruction in config.instructions.items()
    }
    if query_task is None:
        query_task = next(iter(tasks)) if len(tasks) == 1 else config.default_task
    if query_task is None:
        query = _prompt(config.query_template, "", "query_template")
    elif query_task in tasks:
        query = tasks[query_task]
    else:
        trained = ", ".join(tasks) or "no named task"
        raise ValueError(
            f"`--query-task {query_task}`: this model was trained on {trained}{suggest(query_task, tasks)}"
        )
    prompts = {QUERY: query, DOCUMENT: _prompt(config.document_template, "", "document_template")}
    for name, prompt in prompts.items():
        if tasks.get(name, prompt) != prompt:
            raise ValueError(
                f"A task of this checkpoint is named {name!r}, the name of sentence-transformers for the prompt of "
                "all tasks: give it another name in the checkpoint's embedding_config.json."
            )
    return prompts | tasks


def _prompt(template: str, instruction: str, option: str) -> str:
    prompted = parse_template(template, option).render("", instruction)
    if prompted.suffix:
        raise ValueError(
            f"`{option}: {template}` writes {prompted.suffix!r} after the text, but a prompt of sentence-transformers "
            "stands in front of it: only `Encoder` can serve this checkpoint."
        )
    return prompted.prefix


def describe_servers(config: EmbeddingConfig, serving: Serving, model: PretrainedConfig) -> list[str]:
    """Sentences for the terminal and the card: which programs load the folder, and what they do otherwise."""
    remarks = []
    if config.multi_vector:
        remarks.append(
            "The folder is a MultiVectorEncoder of sentence-transformers 6: one vector a token, compared by MaxSim. "
            "vLLM, text-embeddings-inference, llama.cpp and Ollama would pool it, or not load it."
        )
    if is_diffusion(model):
        remarks.append(
            f"The files have the original layout of {model.model_type}: sentence-transformers loads them in a process "
            "that has imported `llamafactory_embed`, and vLLM and text-embeddings-inference do not know the model."
        )
    if model.model_type in HYBRIDS:
        remarks.append(
            f"{model.model_type} mixes tokens by recurrence or convolution as well: text-embeddings-inference does "
            "not know it, and whether vLLM embeds with it was not tried (`llamafactory-embed verify` compares a "
            "server with this folder)."
        )
    if serving.needs_code:
        remarks.append(
            "The pooling is a module of this folder (`embedder_modules.py`): sentence-transformers loads it with "
            "`trust_remote_code=True`; vLLM, text-embeddings-inference, llama.cpp and Ollama cannot load it."
        )
    elif config.pooling == "weighted_mean":
        remarks.append(
            "vLLM, text-embeddings-inference, llama.cpp and Ollama have no weighted mean: only sentence-transformers "
            "loads this folder as it was trained."
        )
    if not serving.prompts[QUERY] and config.instructions:
        remarks.append(
            f"The prompt `{QUERY}` is empty because the checkpoint has {len(config.instructions)} tasks: "
            "name a prompt when encoding, or choose a task for it with `--query-task`."
        )
    if serving.query_length != serving.document_length:
        remarks.append(
            f"Queries end after {serving.query_length} tokens and documents after {serving.document_length} with "
            "`encode_query` and `encode_document` of sentence-transformers 6; servers cut both after "
            f"{serving.max_length}."
        )
    return remarks


def list_commands(config: EmbeddingConfig, serving: Serving, model: PretrainedConfig) -> dict[str, str]:
    """The command of each server that reads the layout, has the pooling and knows the architecture."""
    has_unread_pooling = config.multi_vector or serving.needs_code or config.pooling == "weighted_mean"
    if has_unread_pooling or is_diffusion(model) or model.model_type in HYBRIDS:
        return {}
    commands = {"vLLM": VLLM_COMMAND}
    dense_modules = len(config.dense) + (serving.dimensions is not None)
    if model.model_type in TEI_MODELS and dense_modules <= 1:
        commands["text-embeddings-inference"] = TEI_COMMAND
    return commands
