"""GradCache with batches as embedders are trained with: time a token beside a plain step, and memory.

A plain step of such a batch fits into no memory, so it is one of a chunk: what it needs a token, a plain step of the
whole batch would. What GradCache computes twice is no work that a model needs: its share of the peak counts a forward
and a backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .embedding_step import Rows, cached_step, make_embedder, make_rows, plain_step
from .machine import matmul_peak, peak_gib, seconds_of
from .record import NO_AIM, Aim
from .shapes import QWEN3, SMOLLM2, TINY_LLAMA, TINY_QWEN3, Shape, build_model, training_operations
from .steps import Bench


AIM = Aim(at_most=1.35)
TILE = 8192  # candidates that the loss compares at a time


def measure(bench: Bench) -> None:
    """4,096 rows of both models, 65,536 of the small one with its loss in tiles."""
    peak = matmul_peak(bench.device, bench.size(8192, 128))
    chunk = bench.size(16_384, 64)
    qwen3, smollm2 = bench.size(QWEN3, TINY_QWEN3), bench.size(SMOLLM2, TINY_LLAMA)
    for shape, count, longest, tile in (
        (smollm2, bench.size(4096, 12), bench.size(192, 16), None),
        (qwen3, bench.size(4096, 12), bench.size(96, 16), None),
        (smollm2, bench.size(65_536, 24), bench.size(96, 12), bench.size(TILE, 8)),
    ):
        what = f"{shape.name}, {count:,} rows"

        def part(shape: Shape = shape, count: int = count, longest: int = longest, tile: int | None = tile) -> None:
            rows = make_rows(count, columns=2, longest=longest, fill=1 / 3)
            compare(bench, shape, rows, chunk, tile, peak)

        bench.record.attempt(what, part)


def compare(bench: Bench, shape: Shape, rows: Rows, chunk: int, tile: int | None, peak: float) -> None:
    """One batch: all of it in chunks, and one chunk as a plain step."""
    what = f"{shape.name}, {rows.count:,} rows"
    model = make_embedder(build_model(shape, bench.device, torch.bfloat16), bench.backend)
    chunks = rows.packed(chunk)

    def clean(step: Callable[[], object]) -> Callable[[], None]:
        def whole() -> None:
            model.zero_grad(set_to_none=True)
            step()

        return whole

    tokens = sum(rows.lengths)
    part = rows_of_one_chunk(rows, chunk)
    plain = clean(lambda: plain_step(model, part.packed(None), part.count))
    plain_seconds = seconds_of(plain, bench.device, repeats=bench.size(5, 1), warm_up=1)
    plain_memory = peak_gib(plain, bench.device)
    cached = clean(lambda: cached_step(model, chunks, rows.count, tile))
    times: list[float] = []
    memory = peak_gib(lambda: times.append(seconds_of(cached, bench.device, repeats=1, warm_up=0)), bench.device)
    (seconds,) = times

    record = bench.record
    record.figure(f"{what}: a step of {tokens:,} tokens in {len(chunks)} chunks", seconds, "s")
    record.figure(f"{what}: speed", tokens / seconds, "tokens/s")
    share = training_operations(shape, rows.lengths) / seconds / peak
    record.figure(f"{what}: model FLOP utilisation", 100 * share, "%")
    plain_by_token = plain_seconds / sum(part.lengths)
    record.figure(f"{what}: time a token over a plain step's", seconds / tokens / plain_by_token, "×", AIM)
    record.figure(f"{what}: peak memory", memory, "GiB")
    record.figure(f"{what}: peak memory of a plain step of one chunk", plain_memory, "GiB", NO_AIM)


def rows_of_one_chunk(rows: Rows, chunk: int) -> Rows:
    """The first rows of a batch that have about as many tokens as a chunk."""
    share = chunk / sum(rows.lengths)
    count = max(2, min(rows.count, int(rows.count * share)))
    return Rows(count, [text for column in rows.columns for text in column[:count]])
