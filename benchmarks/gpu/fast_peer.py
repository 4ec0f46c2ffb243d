"""The same contrastive step by sentence-transformers: its loss and models, fed with the same tokens.

Padded column by column, as its collator does; with flash-attn it leaves padding out itself. Both train all weights
in bfloat16 with the same AdamW. Before anything is timed, both compute the batch's loss in float32: it must be one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inputs import train_tokenizer
from .embedding_step import TEMPERATURE, Rows, loss_of, make_embedder, make_rows, optimized, plain_step
from .fast_contrastive import FILLS
from .machine import peak_gib, require, seconds_of
from .record import Aim
from .shapes import QWEN3, SMOLLM2, TINY_LLAMA, TINY_QWEN3, Shape, build_model
from .steps import Bench


AIMS = {"heavy-tailed lengths": Aim(at_least=2.5), "equal lengths": Aim(at_least=1.1)}
SAME_LOSS = 1e-3
PADDING = 1


def measure(bench: Bench) -> None:
    """Ours and theirs, one after the other, on one saved model."""
    require("sentence_transformers")
    for shape, rows in (
        (bench.size(QWEN3, TINY_QWEN3), bench.size(16, 4)),
        (bench.size(SMOLLM2, TINY_LLAMA), bench.size(32, 4)),
    ):
        folder = save_for_both(bench.folder / shape.family, shape, bench.device)
        for kind, fill in FILLS.items():
            batch = make_rows(rows, columns=3, longest=bench.size(512, 16), fill=fill)
            bench.record.attempt(
                f"{shape.name}, {kind}", lambda s=shape, b=batch, k=kind, f=folder: compare(bench, s, b, k, f)
            )


def save_for_both(folder: Path, shape: Shape, device: str) -> Path:
    """A model that sentence-transformers loads with mean pooling. Its tokenizer is never asked."""
    build_model(shape, device, torch.bfloat16).save_pretrained(folder)
    train_tokenizer(400, 4096).save_pretrained(folder)
    return folder


def compare(bench: Bench, shape: Shape, rows: Rows, kind: str, folder: Path) -> None:
    """Equal losses first, then times."""
    what = f"{shape.name}, {kind}, {rows.count} rows"
    check_same_loss(bench, what, rows, folder)
    ours, our_memory = timed(bench, rows, lambda: our_step(folder, bench, rows))
    bench.record.figure(f"{what}: ours", 1000 * ours, "ms")
    bench.record.figure(f"{what}: ours, peak memory", our_memory, "GiB")
    attentions = {"sdpa": AIMS[kind], "flash_attention_2": Aim(at_least=1.1)}
    for attention, aim in attentions.items():

        def theirs(attention: str = attention, aim: Aim = aim) -> None:
            if attention == "flash_attention_2":
                require("flash_attn")
            seconds, memory = timed(bench, rows, lambda: their_step(folder, bench, rows, attention))
            bench.record.figure(f"{what}: sentence-transformers, {attention}", 1000 * seconds, "ms")
            bench.record.figure(f"{what}: sentence-transformers, {attention}, peak memory", memory, "GiB")
            bench.record.figure(f"{what}: times as fast as with {attention}", seconds / ours, "×", aim)

        bench.record.attempt(f"{what}: sentence-transformers, {attention}", theirs)


def timed(bench: Bench, rows: Rows, make: Callable[[], Callable[[], Any]]) -> tuple[float, float]:
    """Seconds of a step and its peak memory in GiB."""
    step = make()
    memory = peak_gib(step, bench.device)
    return seconds_of(step, bench.device, repeats=bench.size(5, 1), warm_up=bench.size(1, 0)), memory


def check_same_loss(bench: Bench, what: str, rows: Rows, folder: Path) -> None:
    """In float32 and without gradients."""
    from transformers import AutoModel

    with torch.no_grad():
        decoder = AutoModel.from_pretrained(folder, dtype=torch.float32).to(bench.device)
        ours = float(loss_of(make_embedder(decoder, "sdpa")(rows.packed(4096)), rows.count))
        del decoder
        model = load_theirs(folder, bench, "sdpa", torch.float32)
        theirs = float(their_loss(model)(features_of(rows, bench.device), None))
    bench.record.error(f"{what}: the loss of both, {ours:.5f}", abs(ours - theirs), SAME_LOSS)


def our_step(folder: Path, bench: Bench, rows: Rows) -> Callable[[], Tensor]:
    """A whole step of ours on the saved weights."""
    from transformers import AutoModel

    model = make_embedder(AutoModel.from_pretrained(folder, dtype=torch.bfloat16).to(bench.device), bench.backend)
    batches = rows.packed(None)
    return optimized(model, lambda: plain_step(model, batches, rows.count))


def their_step(folder: Path, bench: Bench, rows: Rows, attention: str) -> Callable[[], Tensor]:
    """A whole step of theirs."""
    model = load_theirs(folder, bench, attention, torch.bfloat16)
    loss_function = their_loss(model)

    def step() -> Tensor:
        loss = loss_function(features_of(rows, bench.device), None)
        loss.backward()
        return loss.detach()

    return optimized(model, step)


def load_theirs(folder: Path, bench: Bench, attention: str, dtype: torch.dtype) -> Any:
    """Their model of a plain folder: the decoder and mean pooling."""
    from sentence_transformers import SentenceTransformer

    options = {"dtype": dtype, "attn_implementation": attention}
    return SentenceTransformer(str(folder), device=bench.device, model_kwargs=options).train()


def their_loss(model: Any) -> Any:
    """In-batch negatives at the same temperature."""
    room = "sentence_transformers.sentence_transformer"  # of newer releases
    losses = import_module(f"{room}.losses" if find_spec(room) else "sentence_transformers.losses")
    return losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)


def features_of(rows: Rows, device: str) -> list[dict[str, Tensor]]:
    """A padded batch for each column. Made anew for each step, because the model writes into them."""
    features = []
    for column in rows.columns:
        longest = max(map(len, column))
        tokens = [text + [PADDING] * (longest - len(text)) for text in column]
        real = [[1] * len(text) + [0] * (longest - len(text)) for text in column]
        features.append(
            {
                "input_ids": torch.tensor(tokens, device=device),
                "attention_mask": torch.tensor(real, device=device),
            }
        )
    return features
