"""A contrastive step: time, tokens a second, memory, and the share of what the device can multiply."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .embedding_step import Rows, make_embedder, make_rows, optimized, plain_step, with_lora
from .machine import matmul_peak, peak_gib, seconds_of
from .record import Aim, Record
from .shapes import QWEN3, SMOLLM2, TINY_LLAMA, TINY_QWEN3, Shape, build_model, training_operations
from .steps import Bench


FILLS = {"heavy-tailed lengths": 1 / 3, "equal lengths": 1.0}
AIM = Aim(at_least=45.0)


def measure(bench: Bench) -> None:
    """Both models, both kinds of lengths, all weights and LoRA."""
    peak = matmul_peak(bench.device, bench.size(8192, 128))
    bench.record.figure("product of two matrices", peak / 1e12, "TFLOP/s")
    for shape, rows in (
        (bench.size(QWEN3, TINY_QWEN3), bench.size(64, 4)),
        (bench.size(SMOLLM2, TINY_LLAMA), bench.size(128, 4)),
    ):
        for kind, fill in FILLS.items():
            for way in ("full", "LoRA"):
                what = f"{shape.name}, {way}, {kind}"
                bench.record.attempt(what, lambda s=shape, n=rows, f=fill, w=way, t=what: one(bench, s, n, f, w, peak, t))


def one(bench: Bench, shape: Shape, count: int, fill: float, way: str, peak: float, what: str) -> None:
    """One case. Rows are those that fit: half as many where memory is short."""

    def step_of(rows: Rows) -> Callable[[], object]:
        backbone = build_model(shape, bench.device, torch.bfloat16)
        model = make_embedder(with_lora(backbone) if way == "LoRA" else backbone, bench.backend)
        batches = rows.packed(None)
        return optimized(model, lambda: plain_step(model, batches, rows.count))

    rows, step, gib = largest_that_fits(bench, count, fill, step_of)
    seconds = seconds_of(step, bench.device, repeats=bench.size(7, 1), warm_up=bench.size(2, 0))
    operations = training_operations(shape, rows.lengths, frozen=way == "LoRA")
    record_step(bench.record, f"{what}, {rows.count} rows", rows.lengths, seconds, gib, operations / seconds / peak)


def largest_that_fits(
    bench: Bench, count: int, fill: float, step_of: Callable[[Rows], Callable[[], object]]
) -> tuple[Rows, Callable[[], object], float]:
    """Triplets up to 512 tokens, as many rows as memory allows, their step and its peak in GiB."""
    while True:
        rows = make_rows(count, columns=3, longest=bench.size(512, 16), fill=fill)
        try:
            step = step_of(rows)
            return rows, step, peak_gib(step, bench.device)
        except torch.OutOfMemoryError:
            if count < 8:
                raise
        count //= 2
        bench.record.fact("memory was short", f"went on with {count} rows")
        torch.cuda.empty_cache()


def record_step(
    record: Record, what: str, lengths: list[int], seconds: float, gib: float, share: float, aim: Aim = AIM
) -> None:
    """The figures of one measured step."""
    record.figure(f"{what}: a step of {sum(lengths):,} tokens", 1000 * seconds, "ms")
    record.figure(f"{what}: speed", sum(lengths) / seconds, "tokens/s")
    record.figure(f"{what}: model FLOP utilisation", 100 * share, "%", aim)
    record.figure(f"{what}: peak memory", gib, "GiB")
