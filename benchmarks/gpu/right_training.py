"""Ways to train that must give the same gradients: in chunks, with activations computed twice, with fused layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamafactory_embed.model.embedding import EmbeddingModel

from .closeness import allowed_error, gradients_of, terms_of_layer, worst_error
from .embedding_step import Rows, cached_step, loss_of, make_embedder, make_rows, optimized, plain_step, with_lora
from .machine import require
from .shapes import QWEN3, TINY_QWEN3, Shape, build_model
from .steps import Bench


CHUNK_TOKENS = 256
LAYERS = 4


def measure(bench: Bench) -> None:
    """Each against the plain step of the same weights in the same precision."""
    shape = dataclasses.replace(bench.size(QWEN3, TINY_QWEN3), layers=bench.size(LAYERS, 2), vocabulary=400)
    rows = make_rows(bench.size(16, 6), columns=3, longest=bench.size(128, 16), fill=1 / 3)
    comparison = Comparison(bench, shape, rows)
    for dtype in (torch.float32, torch.bfloat16):
        comparison.of_precision(dtype)


class Comparison:
    """One shape, one batch, all ways to train."""

    def __init__(self, bench: Bench, shape: Shape, rows: Rows) -> None:
        self.bench, self.shape, self.rows = bench, shape, rows
        self.chunk_tokens = bench.size(CHUNK_TOKENS, 24)

    def embedder(self, dtype: torch.dtype, change: Callable[[Any], Any] = lambda backbone: backbone) -> EmbeddingModel:
        """The same weights each time; `change` may put something into or around the decoder."""
        backbone = change(build_model(self.shape, self.bench.device, torch.bfloat16).to(dtype))
        return make_embedder(backbone, "sdpa" if dtype == torch.float32 else self.bench.backend)

    def of_precision(self, dtype: torch.dtype) -> None:
        """Loss and gradients of the plain step, then everything else beside them."""
        precision = str(dtype).removeprefix("torch.")
        model = self.embedder(dtype)
        whole = self.rows.packed(None)
        loss = plain_step(model, whole, self.rows.count)
        expected = gradients_of(model)
        chunks = self.rows.packed(self.chunk_tokens)

        def same(what: str, found: EmbeddingModel, found_loss: Tensor, additions: int = 1) -> None:
            self._compare(f"{what}, {precision}", found, found_loss, (loss, expected), dtype, additions)

        def cached() -> None:
            found = self.embedder(dtype)
            same("GradCache", found, cached_step(found, chunks, self.rows.count), len(chunks))

        def tiled() -> None:
            found = self.embedder(dtype)
            same("GradCache, loss in tiles", found, cached_step(found, chunks, self.rows.count, 5), len(chunks))

        def checkpointed() -> None:
            found = self.embedder(dtype)
            found.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            same("gradient checkpointing", found, plain_step(found, whole, self.rows.count))

        def fused() -> None:
            found = self.embedder(dtype, with_liger)
            same("Liger", found, plain_step(found, whole, self.rows.count))

        for what, part in (("GradCache", cached), ("tiles", tiled), ("checkpointing", checkpointed), ("Liger", fused)):
            self.bench.record.attempt(f"{what}, {precision}", part)
        self.bench.record.attempt(f"LoRA, {precision}", lambda: self.learns(dtype, precision))

    def _compare(
        self,
        what: str,
        found: EmbeddingModel,
        found_loss: Tensor,
        expected: tuple[Tensor, dict[str, Tensor]],
        dtype: torch.dtype,
        additions: int,
    ) -> None:
        """A loss divides similarities by the temperature, and so multiplies their rounding."""
        terms = terms_of_layer(found.config, max(self.rows.lengths))
        states = allowed_error(dtype, self.shape.layers, terms)
        loss, gradients = expected
        self.bench.record.error(f"{what}: loss", abs(float(found_loss - loss)), 2 * states / 0.05)
        allowed = allowed_error(
            dtype, self.shape.layers, terms, additions=additions + sum(self.rows.lengths), backward=True
        )
        self.bench.record.error(f"{what}: gradients", worst_error(gradients_of(found), gradients), allowed)

    def learns(self, dtype: torch.dtype, precision: str) -> None:
        """Some steps on one batch lower its loss, with LoRA layers and AdamW."""
        model = self.embedder(dtype, with_lora)
        whole = self.rows.packed(None)
        step = optimized(model, lambda: plain_step(model, whole, self.rows.count))
        losses = [float(step()) for _ in range(8)]
        with torch.no_grad():
            last = float(loss_of(model(whole), self.rows.count))
        self.bench.record.check(f"LoRA learns, {precision}", last < losses[0], f"{losses[0]:.4f} to {last:.4f}")


def with_liger(backbone: Any) -> Any:
    """Liger's fused norms, rotary embeddings and MLP in the place of transformers'."""
    require("liger_kernel")
    require("triton")
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=backbone)
    return backbone
