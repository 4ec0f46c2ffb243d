"""How LLM2Vec (BehnamGhader et al. 2024) and its fork, the Diffusion Embedder, read texts with their checkpoints."""

from __future__ import annotations

import re
from typing import Any

from ..model.pooling import Pooling


POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "bos_token": "bos",
    "last_token": "last",
    "eos_token": "last",  # after a text that ends with EOS as it is written
}
SETTINGS = ("pooling_mode", "max_length", "doc_max_length", "skip_instruction")
MAX_LENGTH, DOC_MAX_LENGTH = 512, 400  # the package's own

# What stands around a text, and its instruction, by the name of the model below the adapters. (LLM2Vec 0.2.3)
LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
INST = "[INST] {} [/INST]"
CHATML = "<|im_start|>user\n{}<|im_end|>"
WRAPPERS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3,
    "mistralai/Mistral-7B-Instruct-v0.2": INST,
    "meta-llama/Llama-2-7b-chat-hf": INST,
    "google/gemma-2-9b-it": "<bos><start_of_turn>user\n{}<end_of_turn>",
    "Qwen/Qwen2-1.5B-Instruct": CHATML,
    "Qwen/Qwen2-7B-Instruct": CHATML,
}
WRAPPER_OF_TYPE = {"Dream": CHATML}  # the Diffusion Embedder wraps the texts of every Dream
# What `eos_token` writes behind a text, by the same name, else by the model's type.
WRITTEN_EOS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "",  # its wrapper ends a text already
    "meta-llama/Meta-Llama-3-8B": "<|end_of_text|>",
    "llama": " </s>",
    "mistral": " </s>",
    "gemma": "<eos>",
    "qwen2": "<|endoftext|>",
}

# The authors train these adapters on a model into which the one before them has been merged; their own configuration
# names only the model at the bottom.
ON_TOP_OF_MNTP = re.compile(r"(?P<below>.*-mntp)-(supervised|unsup-simcse)$")


def adapter_below(name: str) -> str | None:
    """The adapter that was merged before the one of this name, by how the authors name theirs."""
    match = ON_TOP_OF_MNTP.match(name.rstrip("/"))
    return None if match is None else match["below"]


def embedder_settings(saved: dict[str, Any], where: str, base_model: str, model_type: str | None) -> dict[str, Any]:
    """The settings of an embedder, by their names in its configuration, from the content of `llm2vec_config.json`.
    `where` is for error messages."""
    unknown = sorted(set(saved) - set(SETTINGS))
    if unknown:
        raise ValueError(f"{where} has the key `{unknown[0]}`, and LLM2Vec knows {', '.join(SETTINGS)}.")
    mode = saved.get("pooling_mode", "mean")
    if not isinstance(mode, str) or mode not in POOLINGS:
        raise ValueError(f"{where} asks for the unknown `pooling_mode: {mode}`: LLM2Vec knows {', '.join(POOLINGS)}.")
    kind = model_type or ""
    wrapper = WRAPPERS.get(base_model) or WRAPPER_OF_TYPE.get(kind, "{}")
    if mode == "eos_token":
        eos = WRITTEN_EOS.get(base_model, WRITTEN_EOS.get(kind))
        if eos is None:
            raise ValueError(
                f"{where} asks for `pooling_mode: eos_token`, which LLM2Vec does not have for {kind} models."
            )
        wrapper += eos
    longest = _read_length(saved, "max_length", MAX_LENGTH, where)
    skip_instruction = saved.get("skip_instruction", True)
    if not isinstance(skip_instruction, bool):
        raise ValueError(f"{where}: `skip_instruction` must be true or false, not {skip_instruction!r}.")
    return {
        "attention": "bidirectional",
        "sliding_window": "ignore",
        "pooling": POOLINGS[mode],
        "appends_eos": False,
        "skip_instruction": skip_instruction,
        "query_template": wrapper.format("{instruction} {text}"),
        "document_template": wrapper.format("{text}"),
        "query_max_length": longest,
        "document_max_length": min(longest, _read_length(saved, "doc_max_length", DOC_MAX_LENGTH, where)),
        "normalize": False,
    }


def _read_length(saved: dict[str, Any], key: str, default: int, where: str) -> int:
    length = saved.get(key, default)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"{where}: `{key}` must be a number of tokens above 0, not {length!r}.")
    return length
