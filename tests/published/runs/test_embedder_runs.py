"""The Diffusion Embedder's losses and designs of Pooling-and-Attention, on a tiny Llama.

Scaled down: 20 steps, the schedule to its end; accumulation, warm-up, weight decay and LoRA as in the recipes; no
dropout. Where the originals run on eight GPUs, these run on two ranks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from tests.two_ranks import forked_ranks

from .comparison import assert_same_run
from .embedders import (
    DOCUMENT,
    QUERY,
    Embedder,
    write_document,
    write_e5_query,
    write_plain,
    write_query,
)
from .recording import STEPS, Recording, record_run, scaled_down, write_retrieval_data
from .reference import Training, info_nce, linear, load_model, prepare_to_learn, train


ACCUMULATION = 4
HEADS, HEAD_SIZE, LATENTS = 4, 16, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval_data(tmp_path_factory.mktemp("data"))


def embedder_recipe(published: str, model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    shared = {
        "model_name_or_path": str(model),
        "dataset": "nouns,words",
        "dataset_dir": str(data),
        "cutoff_len": 256,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "output_dir": str(output),
    }
    return scaled_down(f"train_lora/{published}", **(shared | options))


def test_repllama_with_accumulation(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """`dream_embed`: dot products of unnormalized embeddings over their size, a query's own passages only,
    instructions pooled too, four accumulated micro-batches; one epoch (here of 20 steps), down to a rate of 0."""
    recording = record_run(
        embedder_recipe(
            "dream_embed", tiny_llama, data, tmp_path, num_negatives=3, query_template=QUERY,
            document_template=DOCUMENT, query_max_length=256, document_max_length=256,
            per_device_train_batch_size=2, gradient_accumulation_steps=ACCUMULATION,
            dataset="nouns[:80],words[:80]", warmup_steps=3, learning_rate=2e-3,
        )
    )  # fmt: skip
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, recording.start)
    embedder = Embedder(model, AutoTokenizer.from_pretrained(tiny_llama), write_query, write_document)

    def loss(examples: Sequence[Any]) -> Tensor:
        queries, passages = embedder.queries(examples), embedder.own_passages(examples)
        products = torch.einsum("bd,bpd->bp", queries, passages) / queries.shape[-1]
        return F.cross_entropy(products, torch.zeros(len(examples), dtype=torch.long))

    step_losses = (
        (loss(examples) / ACCUMULATION for examples, _ in micro_batches)
        for micro_batches in recording.steps(ACCUMULATION)
    )
    result = train(learned, step_losses, Training(2e-3, linear(3, STEPS)))
    assert_same_run(recording, result, learned)


# ---------------------------------------------------------------------------------------------------------------------
# Two ranks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two_ranks(
    tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Recording, Recording]]:
    """Both runs in one start of torchrun."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {
        "supervised": embedder_recipe(
            "llm2vec/llama2_supervised", tiny_llama, data, folder / "supervised", adapter_name_or_path=None,
            create_new_adapter=None, per_device_train_batch_size=2, stop_after_n_steps=STEPS, warmup_steps=6,
            learning_rate=2e-3,
        ),
        "latent": embedder_recipe(
            "pooling_and_attention/4_bidirectional_latent", tiny_llama, data, folder / "latent", latents=LATENTS,
            latent_heads=HEADS, latent_head_size=HEAD_SIZE, gradient_accumulation_steps=ACCUMULATION,
            max_steps=STEPS, warmup_steps=2, learning_rate=1e-3,
        ),
    }  # fmt: skip
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    forked_ranks("tests.published.runs.in_ranks", folder)

    def load(name: str, rank: int) -> Recording:
        recording = torch.load(folder / f"{name}-{rank}.pt", weights_only=False)
        assert isinstance(recording, Recording)
        return recording

    return {name: (load(name, 0), load(name, 1)) for name in runs}


def joined_steps(ranks: tuple[Recording, Recording], accumulation: int) -> list[list[list[Any]]]:
    """The rows of each micro-batch of all ranks together, by step."""
    first, second = (recording.steps(accumulation) for recording in ranks)
    return [
        [[*own, *others] for (own, _), (others, _) in zip(*steps, strict=True)]
        for steps in zip(first, second, strict=True)
    ]


@pytest.mark.process
def test_supervised_on_two_ranks(on_two_ranks: dict[str, tuple[Recording, Recording]], tiny_llama: Path) -> None:
    """LLM2Vec's third step: the passages of all GPUs are candidates, so that the loss is that of the joined batch."""
    ranks = on_two_ranks["supervised"]
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, ranks[0].start)
    embedder = Embedder(
        model, AutoTokenizer.from_pretrained(tiny_llama), write_query, write_document, skip_instruction=True
    )

    def loss(rows: Sequence[Any]) -> Tensor:
        return info_nce(embedder.queries(rows), embedder.positives(rows), embedder.negatives(rows), scale=50)

    step_losses = ([loss(rows)] for (rows,) in joined_steps(ranks, 1))
    result = train(learned, step_losses, Training(2e-3, linear(6, 3 * (2 * 96 // 4))))
    for recording in ranks:
        assert_same_run(recording, result, learned)


@pytest.mark.process
def test_latent_pooling_on_two_ranks(on_two_ranks: dict[str, tuple[Recording, Recording]], tiny_llama: Path) -> None:
    """Design 4 of Pooling-and-Attention: one row a GPU, whose passages cross GPUs and not accumulated steps; scale 20;
    all weights of the pooler learn beside LoRA, and decay unless they are biases or belong to a norm."""
    ranks = on_two_ranks["latent"]
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, ranks[0].start)
    weights = {name.removeprefix("pooler."): each for name, each in learned.items() if name.startswith("pooler.")}
    embedder = Embedder(
        model,
        AutoTokenizer.from_pretrained(tiny_llama),
        write_e5_query,
        write_plain,
        pool=lambda states, counts: latent_pool(weights, states, counts),
    )

    def loss(rows: Sequence[Any]) -> Tensor:
        return info_nce(embedder.queries(rows), embedder.positives(rows), embedder.negatives(rows), scale=20)

    step_losses = ((loss(rows) / ACCUMULATION for rows in step) for step in joined_steps(ranks, ACCUMULATION))
    training = replace(Training(1e-3, linear(2, STEPS)), weight_decay=0.01)
    result = train(learned, step_losses, training)
    for recording in ranks:
        assert_same_run(recording, result, learned)


def latent_pool(weights: dict[str, Tensor], states: Tensor, counts: Sequence[Sequence[bool]]) -> Tensor:
    """Latents attend to a text's states, A = attention(norm(latents), norm(states)) + latents; then
    GEGLU(norm(A)) + A, of whose latents the embedding is the mean (Tang and Yang 2024, section 3)."""

    def norm(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (HEADS, HEAD_SIZE)).transpose(-3, -2)  # [..., h, n, s]

    embeddings = []
    for text, row in zip(states, counts, strict=True):
        queries = heads(norm("latent_norm", weights["latents"]) @ weights["to_query.weight"].T)
        pairs = norm("key_norm", text[: len(row)]) @ weights["to_key_value.weight"].T
        keys, values = (heads(part) for part in pairs.chunk(2, dim=-1))
        attention = (queries @ keys.transpose(-2, -1) / HEAD_SIZE**0.5).softmax(dim=-1)
        attended = (attention @ values).transpose(-3, -2).flatten(-2) @ weights["to_output.weight"].T
        latents = attended + weights["latents"]
        inner = F.linear(
            norm("feedforward_norm", latents), weights["feedforward_in.weight"], weights["feedforward_in.bias"]
        )
        linear_part, gate = inner.chunk(2, dim=-1)
        outer = F.linear(
            linear_part * F.gelu(gate), weights["feedforward_out.weight"], weights["feedforward_out.bias"]
        )
        embeddings.append((outer + latents).mean(dim=0))
    return torch.stack(embeddings)
