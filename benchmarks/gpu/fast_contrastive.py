"""A contrastive step: time, tokens a second, memory, and the share of what the device can multiply."""

from __future__ import annotations

from dataclasses import dataclass

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
    for shape, tokens in (
        (bench.size(QWEN3, TINY_QWEN3), bench.size(16_384, 200)),
        (bench.size(SMOLLM2, TINY_LLAMA), bench.size(32_768, 200)),
    ):
        for kind, fill in FILLS.items():
            rows = rows_of_tokens(bench, tokens, fill)
            for way in ("full", "LoRA"):
                case = Case(shape, rows, kind, way, peak)
                bench.record.attempt(case.name, lambda case=case: measure_case(bench, case))


@dataclass(frozen=True)
class Case:
    """One step to measure, and the operations a second that the device can do."""

    shape: Shape
    rows: Rows
    kind: str
    way: str
    peak: float

    @property
    def name(self) -> str:
        """As it stands beside its figures."""
        return f"{self.shape.name}, {self.way}, {self.kind}, {self.rows.count} rows"


def rows_of_tokens(bench: Bench, tokens: int, fill: float) -> Rows:
    """Triplets up to 512 tokens long that have about so many in all."""
    longest = bench.size(512, 16)
    return make_rows(max(2, round(tokens / (3 * longest * fill))), columns=3, longest=longest, fill=fill)


def measure_case(bench: Bench, case: Case) -> None:
    """Forward, backward, clipping and AdamW on packed rows that are ready."""
    backbone = build_model(case.shape, bench.device, torch.bfloat16)
    model = make_embedder(with_lora(backbone) if case.way == "LoRA" else backbone, bench.backend)
    batches = case.rows.packed(None)
    step = optimized(model, lambda: plain_step(model, batches, case.rows.count))
    gib = peak_gib(step, bench.device)
    seconds = seconds_of(step, bench.device, repeats=bench.size(7, 1), warm_up=bench.size(2, 0))
    operations = training_operations(case.shape, case.rows.lengths, frozen=case.way == "LoRA")
    record_step(bench.record, case.name, case.rows.lengths, seconds, gib, operations / seconds / case.peak)


def record_step(
    record: Record, what: str, lengths: list[int], seconds: float, gib: float, share: float, aim: Aim = AIM
) -> None:
    """The figures of one measured step."""
    record.figure(f"{what}: a step of {sum(lengths):,} tokens", 1000 * seconds, "ms")
    record.figure(f"{what}: speed", sum(lengths) / seconds, "tokens/s")
    record.figure(f"{what}: model FLOP utilisation", 100 * share, "%", aim)
    record.figure(f"{what}: peak memory", gib, "GiB")
