"""From a wish, a model and a GPU's memory to settings that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .memory import GIB, ModelShape, StepMemory, StepSettings, estimate_step, fits_into


Method = Literal["auto", "full", "lora", "qlora"]
# Tokens of one forward on a GPU (the stages' default), and the chunks that GradCache is tried with.
FORWARD_TOKENS = 16_384
FORWARD_TOKENS_ON_CPU = 4_096
CHUNKS = (16_384, 8_192, 4_096, 2_048)
TEXTS_OF_ROW = 3
"""Query, positive and one negative."""
SMALLEST_CHUNK_TEXTS = 1


@dataclass(frozen=True)
class Wish:
    """What is to be trained, on what."""

    stage: str
    method: Method
    rows: int
    """Rows of a batch, of one device."""

    length: int
    """Most tokens of a text."""

    memory: float
    """Bytes of one device."""

    gpus: int
    """0: a CPU."""


@dataclass(frozen=True)
class RunPlan:
    """What fits."""

    method: Literal["full", "lora", "qlora"]
    rows: int
    accumulation: int
    checkpointing: bool
    grad_cache_tokens: int | None
    zero_stage: int
    estimate: StepMemory


def plan_run(shape: ModelShape, wish: Wish) -> RunPlan:
    """The first of the candidates that fits: the method that changes most, the largest batch, the fastest step."""
    for settings, plan in candidates(shape, wish):
        if wish.gpus and fits_into(shape, settings, wish.memory):
            return plan
        if not wish.gpus and estimate_step(shape, settings).total <= 0.85 * wish.memory:
            return plan
    smallest = min(estimate_step(shape, settings).total for settings, _ in candidates(shape, wish))
    raise ValueError(
        f"`--memory {wish.memory / GIB:g}GB` is too little: a step of this model takes {smallest / GIB:.1f} GB "
        "with the least that can be set; take a smaller model or `--length`, more memory, or `--method qlora`."
    )


def candidates(shape: ModelShape, wish: Wish) -> Iterator[tuple[StepSettings, RunPlan]]:
    """Settings in the order in which one would want them."""
    for method in methods(wish):
        for zero_stage in (0, 2, 3) if wish.gpus > 1 and method == "full" else (0,):
            for rows, accumulation in batches(wish):
                for checkpointing, chunk in steps(wish, rows):
                    settings = step_settings(wish, method, rows, checkpointing, chunk, zero_stage)
                    estimate = estimate_step(shape, settings)
                    yield settings, RunPlan(method, rows, accumulation, checkpointing, chunk, zero_stage, estimate)


def methods(wish: Wish) -> tuple[Literal["full", "lora", "qlora"], ...]:
    """Quantized weights need a GPU."""
    if wish.method != "auto":
        return (wish.method,)
    return ("full", "lora", "qlora") if wish.gpus else ("full", "lora")


def batches(wish: Wish) -> list[tuple[int, int]]:
    """Rows and accumulated steps whose product is the batch. Negatives do not cross accumulated steps, so that a
    contrastive batch is kept whole, by GradCache."""
    if wish.stage == "contrastive":
        return [(wish.rows, 1)]
    halvings = [wish.rows >> shift for shift in range(wish.rows.bit_length()) if wish.rows % (1 << shift) == 0]
    return [(rows, wish.rows // rows) for rows in halvings if rows >= 1]


def steps(wish: Wish, rows: int) -> list[tuple[bool, int | None]]:
    """Whether layers are recomputed, and GradCache's chunk: from the fastest to the smallest."""
    plain: list[tuple[bool, int | None]] = [(False, None), (True, None)]
    if wish.stage != "contrastive":
        return plain
    needed = max(CHUNKS[-1] if wish.gpus else 1_024, SMALLEST_CHUNK_TEXTS * wish.length)
    chunks = [chunk for chunk in CHUNKS if needed <= chunk < rows * TEXTS_OF_ROW * wish.length]
    return plain + [(recompute, chunk) for chunk in chunks for recompute in (False, True)]


def step_settings(
    wish: Wish,
    method: Literal["full", "lora", "qlora"],
    rows: int,
    checkpointing: bool,
    chunk: int | None,
    zero_stage: int,
) -> StepSettings:
    """What the memory of a step depends on."""
    texts = TEXTS_OF_ROW if wish.stage == "contrastive" else 1
    predicts = wish.stage in ("mntp", "ddm", "ddm-sft")
    forward = FORWARD_TOKENS if wish.gpus else FORWARD_TOKENS_ON_CPU
    settings = StepSettings(
        method,
        tokens=rows * texts * wish.length,
        tokens_of_forward=chunk or max(forward, wish.length),
        half_precision=wish.gpus > 0,
        checkpointing=checkpointing,
        grad_cache=chunk is not None,
        predicts_tokens=predicts,
        uses_head=predicts or wish.stage == "word-task",
        zero_stage=zero_stage,
        gpus=max(1, wish.gpus),
    )
    if wish.stage == "word-task":  # a frozen backbone keeps nothing for a backward pass
        return dataclasses.replace(settings, checkpointing=True)
    return settings
