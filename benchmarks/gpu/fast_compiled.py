"""torch.compile of each decoder layer: the same states, faster, and no compilation for every new length."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from llamafactory_embed.model.packed import forward_packed, pack_texts

from .closeness import allowed_error, relative_error, terms_of_layer
from .embedding_step import make_embedder, make_rows, optimized, plain_step
from .machine import seconds_of
from .shapes import QWEN3, TINY_QWEN3, Shape, build_model, mixed_lengths, random_texts
from .steps import Bench


LAYERS = 8


def measure(bench: Bench) -> None:
    """Part of the layers, so that the compiler's time fits; a step's time is theirs."""
    shape = dataclasses.replace(bench.size(QWEN3, TINY_QWEN3), layers=bench.size(LAYERS, 1))
    bench.record.attempt("the same states", lambda: same_states(bench, shape))
    bench.record.attempt("a training step", lambda: faster_step(bench, shape))


def compiled(bench: Bench, model: Any) -> Any:
    """The decoder with every layer compiled in place; a rehearsal traces without a code generator."""
    for layer in model.decoder.layers:
        layer.compile(dynamic=True, backend="eager" if bench.small else "inductor")
    return model


def same_states(bench: Bench, shape: Shape) -> None:
    """Packed rows of several sizes, and how often the compiler began anew after the first two."""
    plain = make_embedder(build_model(shape, bench.device, torch.bfloat16), bench.backend).eval()
    fast = compiled(bench, make_embedder(build_model(shape, bench.device, torch.bfloat16), bench.backend).eval())
    errors, compilations = [], []
    start = time.perf_counter()
    with torch.no_grad():
        for seed in range(bench.size(6, 4)):
            lengths = mixed_lengths(5 + seed, bench.size(200 + 10 * seed, 12 + seed), fill=1 / 3, seed=seed)
            (batch,) = pack_texts(random_texts(lengths, 400, seed))
            (found,), (expected,) = forward_packed(fast.decoder, batch), forward_packed(plain.decoder, batch)
            errors.append(relative_error(found, expected))
            compilations.append(unique_graphs())
    record = bench.record
    record.figure("forwards of several sizes, compilation included", time.perf_counter() - start, "s")
    record.error(
        "compiled states", max(errors), allowed_error(torch.bfloat16, shape.layers, terms_of_layer(plain.config, 200))
    )
    record.fact("graphs after each size", compilations)
    if bench.backend == "sdpa":
        record.skip("no compilation for a new size", "sdpa attends text by text: a graph for every set of lengths")
    else:
        record.check("no compilation for a new size", compilations[-1] == compilations[1], str(compilations))


def unique_graphs() -> int:
    """Graphs that dynamo has made so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def faster_step(bench: Bench, shape: Shape) -> None:
    """A step with and without, on the same rows."""
    rows = make_rows(bench.size(32, 4), columns=3, longest=bench.size(512, 16), fill=1 / 3)
    seconds = {}
    for way in ("plain", "compiled"):
        model = make_embedder(build_model(shape, bench.device, torch.bfloat16), bench.backend)
        if way == "compiled":
            compiled(bench, model)
        batches = rows.packed(None)
        step = optimized(model, lambda model=model, batches=batches: plain_step(model, batches, rows.count))
        seconds[way] = seconds_of(step, bench.device, repeats=bench.size(5, 1), warm_up=2)
        bench.record.figure(f"{shape.name}, {shape.layers} layers, {way}: a step", 1000 * seconds[way], "ms")
    bench.record.figure("times as fast when compiled", seconds["plain"] / seconds["compiled"], "×")
