"""Which programs can load an exported folder, and with which command."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..model.embedding_config import EmbeddingConfig
from .serving import QUERY, Serving
from .weights import is_diffusion


# The architectures of decoders that text-embeddings-inference has, by `model_type`.
TEI_MODELS = ("llama", "mistral", "qwen2", "qwen3")
VLLM_COMMAND = "vllm serve {folder} --runner pooling"
TEI_COMMAND = "text-embeddings-router --model-id {folder} --port 8080"


def describe_servers(config: EmbeddingConfig, serving: Serving, model: PretrainedConfig) -> list[str]:
    """Sentences for the terminal and the card about who can take the folder and who cannot."""
    remarks = []
    if is_diffusion(model):
        remarks.append(
            f"The files have the original layout of {model.model_type}: sentence-transformers loads them in a process "
            "that has imported `llamafactory_embed`, and vLLM and text-embeddings-inference do not know the model."
        )
    if serving.needs_code:
        remarks.append(
            "The pooling is a module of this folder (`embedder_modules.py`): sentence-transformers loads it with "
            "`trust_remote_code=True`; vLLM, text-embeddings-inference, llama.cpp and Ollama cannot take it."
        )
    elif config.pooling == "weighted_mean":
        remarks.append(
            "vLLM, text-embeddings-inference, llama.cpp and Ollama have no weighted mean: only sentence-transformers "
            "loads this folder as it was trained."
        )
    if not serving.prompts[QUERY] and config.instructions:
        remarks.append(
            f"The prompt `{QUERY}` is empty, for the checkpoint has {len(config.instructions)} tasks: name a prompt "
            "when encoding, or choose a task for it with `--query-task`."
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
    if serving.needs_code or config.pooling == "weighted_mean" or is_diffusion(model):
        return {}
    commands = {"vLLM": VLLM_COMMAND}
    if model.model_type in TEI_MODELS:
        commands["text-embeddings-inference"] = TEI_COMMAND
    return commands
