"""A training step of masked next-token prediction against the one of the llm2vec package.

llm2vec 0.2.3 needs transformers 4.44 and an environment of its own, whose Python `LLM2VEC_PYTHON` names:

    python -m venv llm2vec && llm2vec/bin/pip install llm2vec==0.2.3 "transformers==4.44.2"
    LLM2VEC_PYTHON=llm2vec/bin/python python -m benchmarks mntp_vs_llm2vec
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Variant, take_turns
from .results_file import Result, check_equal, ratio, table_of


TITLE = "`stage: mntp` against llm2vec"
OURS, THEIRS = "llamafactory-embed", "llm2vec 0.2.3"


@dataclass(frozen=True)
class Settings:
    """A Llama with a vocabulary of today's size, and chunks of equal length, as LLM2Vec makes them."""

    layers: int = 6
    hidden_size: int = 384
    intermediate_size: int = 1024
    heads: int = 6
    vocabulary: int = 151_936
    rows: int = 4
    length: int = 256
    hidden_share: float = 0.2
    steps: int = 3  # the first one warms up


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """The same weights, chunks and masks, LoRA on all projections below a frozen head."""
    python = os.environ.get("LLM2VEC_PYTHON")
    if not python:
        raise ValueError("Set `LLM2VEC_PYTHON` to the Python of an environment with llm2vec 0.2.3.")
    request = dataclasses.asdict(settings) | {
        "model": str(save_llama(folder / "model", settings)),
        "batches": str(write_batches(folder / "batches.json", settings)),
    }
    case = f"{settings.rows} × {settings.length} tokens, {settings.vocabulary} in the vocabulary"
    variants = {
        OURS: Variant("benchmarks.mntp_steps:ours", request),
        THEIRS: Variant("benchmarks.mntp_steps:theirs", request, python),
    }
    runs = take_turns({case: variants}, repeats)
    check_equal(runs, case, tolerance=1e-4)
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[
            ratio("speed", runs, case, THEIRS, OURS, "seconds", at_least=2.0),
            ratio("peak memory", runs, case, OURS, THEIRS, "peak_mib", at_most=0.5),
        ],
        table=table_of(
            runs,
            {
                "tokens/s": lambda median: f"{median('tokens_per_second'):.0f}",
                "seconds a step": lambda median: f"{median('seconds'):.2f}",
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
                "loss of step 1": lambda median: f"{median('first_loss'):.6f}",
            },
        ),
    )


def save_llama(folder: Path, settings: Settings) -> Path:
    """Random weights; the configuration names what both versions of transformers read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.length,
        tie_word_embeddings=False,
        initializer_range=0.06,  # with the usual 0.02 the loss would hardly depend on what the model reads
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_batches(path: Path, settings: Settings) -> Path:
    """Random chunks with a share of their tokens hidden behind one token; the first token has no label."""
    import torch

    generator = torch.Generator().manual_seed(0)
    batches: list[dict[str, Any]] = []
    for _ in range(settings.steps):
        shape = (settings.rows, settings.length)
        tokens = torch.randint(3, settings.vocabulary, shape, generator=generator)
        chosen = torch.rand(shape, generator=generator) < settings.hidden_share
        chosen[:, 0] = False
        inputs, labels = tokens.masked_fill(chosen, 2), tokens.masked_fill(~chosen, -100)
        batches.append({"input_ids": inputs.tolist(), "labels": labels.tolist()})
    path.write_text(json.dumps(batches), "utf-8")
    return path
