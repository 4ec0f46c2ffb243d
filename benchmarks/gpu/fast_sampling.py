"""Denoising with a model of LLaDA's size: tokens a second and tokens a forward, plain, with caches, in parallel.

Random weights are sure of nothing, so a threshold that fits a trained model would reveal one token a step. Here stand
the two ends, a threshold that no guess reaches (one token a forward) and one that all reach (a block a forward), and
between them four tokens a forward by the number of steps.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.loop import denoise
from llamafactory_embed.sampling.network import LanguageModelNetwork
from llamafactory_embed.sampling.settings import SamplingSettings

from .machine import GIB, free_gib, peak_gib, synchronize
from .record import NO_AIM, Aim
from .shapes import LLADA, SMALLER_LLADA, TINY_LLADA, Shape, build_model, random_texts
from .steps import Bench


AIM = Aim(at_least=8.0)
PARALLEL = "dual cache, 4 tokens a forward"  # about what a threshold reveals in a trained model
SPARE_GIB = 8.0  # beside the weights


class NoDraws:
    """Greedy sampling leaves nothing to chance."""

    def tokens(self, rows: Any) -> torch.Tensor:
        raise AssertionError("greedy sampling draws nothing")

    positions = tokens


def measure(bench: Bench) -> None:
    """The same prompts in every way."""
    shape = largest_shape(bench)
    bench.record.fact("model", shape.name)
    model = build_model(shape, bench.device, torch.bfloat16, head=True).eval()
    prompt, new, block = bench.size((128, 128, 32), (6, 8, 4))
    plain: dict[int, float] = {}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"steps": new},
        "prefix cache": {"steps": new, "cache": "prefix"},
        "dual cache": {"steps": new, "cache": "dual"},
        "4 tokens a forward": {"steps": new // 4},
        PARALLEL: {"steps": new // 4, "cache": "dual"},
        "dual cache, a threshold that none reaches": {"cache": "dual", "confidence_threshold": 1.0},
        "dual cache, a threshold that all reach": {"cache": "dual", "confidence_threshold": 0.0},
    }
    for rows in bench.size((1, 8), (2,)):
        prompts = random_texts([prompt] * rows, shape.vocabulary - 1)
        for way, changes in ways.items():
            settings = SamplingSettings(max_new_tokens=new, block_length=block, **changes)
            bench.record.attempt(
                f"{way}, {rows} rows", lambda w=way, p=prompts, s=settings: one(bench, shape, model, w, p, s, plain)
            )


def largest_shape(bench: Bench) -> Shape:
    """LLaDA-8B where its weights fit."""
    if bench.small:
        return TINY_LLADA
    return LLADA if free_gib(bench.device) > 2 * LLADA.parameters / GIB + SPARE_GIB else SMALLER_LLADA


def one(
    bench: Bench,
    shape: Shape,
    model: Any,
    way: str,
    prompts: list[list[int]],
    settings: SamplingSettings,
    plain: dict[int, float],
) -> None:
    """Tokens a second, tokens a forward, and how many times as fast as the plain way."""
    mask, rows = shape.vocabulary - 1, len(prompts)

    def sample() -> int:
        network = LanguageModelNetwork(model, shift=False, cache=settings.cache)
        canvas = Canvas.of_prompts(prompts, settings.max_new_tokens, mask, bench.device)
        done = denoise(canvas, network, settings, NoDraws(), banned_tokens=[mask])
        if bool((done.canvas.tokens == mask).any()):
            raise RuntimeError("a mask is left in a finished text")
        return done.forwards

    with torch.inference_mode():
        whole = [prompt + [mask] * settings.max_new_tokens for prompt in prompts]
        model(input_ids=torch.tensor(whole, device=bench.device), use_cache=False)  # warm up
    synchronize(bench.device)
    start = time.perf_counter()
    forwards: list[int] = []
    gib = peak_gib(lambda: forwards.append(sample()), bench.device)
    synchronize(bench.device)
    seconds = time.perf_counter() - start
    speed = rows * settings.max_new_tokens / seconds
    plain.setdefault(rows, speed)
    what = f"{shape.name}, {way}, {rows} rows"
    record = bench.record
    record.figure(f"{what}: speed", speed, "tokens/s")
    record.figure(f"{what}: each row", settings.max_new_tokens / forwards[0], "tokens/forward")
    aim = AIM if way == PARALLEL else NO_AIM
    record.figure(f"{what}: times as fast as plain", speed / plain[rows], "×", aim)
    record.figure(f"{what}: peak memory", gib, "GiB")
