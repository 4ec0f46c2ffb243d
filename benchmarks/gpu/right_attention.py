"""Who sees whom on the device's kernels: the leak matrix, packed against separate, annealed and block masks.

The reference of a 16-bit computation is the same one in float32 with the same (rounded) weights, text by text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_patch import HYBRIDS, annealed_inputs, mask_inputs, packed_inputs, patch_attention
from llamafactory_embed.diffusion.blocks import block_layout, block_mask
from llamafactory_embed.model.packed import find_decoder, forward_packed, pack_texts, split_texts

from .closeness import allowed_error, gradients_of, relative_error, terms_of_layer, weighted_sum, worst_error
from .shapes import Shape, build_model, random_texts
from .steps import Bench


LENGTHS = (7, 33, 2, 33, 1, 12)
MODES = ("bidirectional", "causal")
DTYPES = (torch.float32, torch.bfloat16)
WINDOW = 4  # of Mistral and of every other layer of Gemma 3


def measure(bench: Bench) -> None:
    """Every combination that the kernels allow."""
    families = bench.size(("llama", "qwen3", "mistral", "qwen3_5_text"), ("llama", "qwen3_5_text"))
    backends = ("sdpa", "eager") if bench.device == "cpu" else ("flash_attention_2", "sdpa")
    for family in families:
        for backend in backends:
            for dtype in DTYPES:
                name = f"{family}, {backend}, {str(dtype).removeprefix('torch.')}"
                if backend == "flash_attention_2" and dtype == torch.float32:
                    bench.record.attempt(f"{name}: refused", lambda family=family: refuses_float32(bench, family))
                    continue
                for mode in modes_of(family):
                    compare_packed(bench, name, family, backend, dtype, mode)
                    leak_matrix(bench, name, family, backend, dtype, mode)
                masks_of_training(bench, name, family, backend, dtype)
    if bench.device == "cpu":
        bench.record.skip("flash_attention_2", "no CUDA device")


def modes_of(family: str) -> tuple[str, ...]:
    """How its attention can be."""
    return ("causal",) if family in HYBRIDS else MODES


def shape_of(bench: Bench, family: str, layers: int) -> Shape:
    """A small model whose heads flash kernels take."""
    size = bench.size(256, 32)
    heads = 4
    return Shape(family, family, layers, size, 2 * size, heads, 2, size // heads, 400)


def loaded(bench: Bench, family: str, dtype: torch.dtype, layers: int) -> Any:
    """A model whose weights are numbers of bfloat16, in any precision."""
    model = build_model(shape_of(bench, family, layers), bench.device, torch.bfloat16).to(dtype)
    if family == "mistral":
        model.config.sliding_window = WINDOW
    return model.eval()


# ------------------------------ packed = separate ------------------------------


def compare_packed(bench: Bench, name: str, family: str, backend: Any, dtype: torch.dtype, mode: Any) -> None:
    """States and gradients of a packed row against those of one text at a time in float32."""

    def compare() -> None:
        texts = random_texts(LENGTHS, 400)
        exact = loaded(bench, family, torch.float32, layers=2)
        with patch_attention(exact, mode, backend="sdpa"):
            alone = [states_of(exact, text, bench.device) for text in texts]
            weighted_sum(alone).backward()
        model = loaded(bench, family, dtype, layers=2)
        with patch_attention(model, mode, backend=backend):
            (batch,) = pack_texts(texts)
            (hidden,) = forward_packed(find_decoder(model), batch)
            packed = split_texts(hidden, batch, len(texts))
            weighted_sum(packed).backward()
        terms = terms_of_layer(model.config, max(LENGTHS))
        bench.record.error(
            f"{name}, {mode}: packed states",
            max(relative_error(found, wanted) for found, wanted in zip(packed, alone, strict=True)),
            allowed_error(dtype, 2, terms),
        )
        if family in HYBRIDS and dtype != torch.float32:
            return  # keys of unit length: with random weights their gradients in 16 bits are far off, packed or not
        bench.record.error(
            f"{name}, {mode}: packed gradients",
            worst_error(gradients_of(model), gradients_of(exact)),
            allowed_error(dtype, 2, terms, additions=len(texts) + sum(LENGTHS), backward=True),
        )

    bench.record.attempt(f"{name}, {mode}: packed", compare)


def states_of(model: Any, text: list[int], device: str) -> Tensor:
    """The last hidden states of one text [n, d]."""
    return model(input_ids=torch.tensor([text], device=device), use_cache=False).last_hidden_state[0]


def refuses_float32(bench: Bench, family: str) -> None:
    """Flash kernels compute in 16 bits: a model in float32 is told so, not silently rounded."""
    model = loaded(bench, family, torch.float32, layers=1)
    with patch_attention(model, "causal", backend="flash_attention_2"):
        try:
            states_of(model, [5, 6, 7], bench.device)
        except ValueError as error:
            bench.record.check(f"{family}: float32 is refused", "16 bits" in str(error), str(error))
            return
    bench.record.check(f"{family}: float32 is refused", False, "it ran")


# ------------------------------ leaks ------------------------------


def leak_matrix(bench: Bench, name: str, family: str, backend: Any, dtype: torch.dtype, mode: Any) -> None:
    """Change one token of a packed row at a time: exactly the positions of its text that see it move."""

    def compare() -> None:
        model = loaded(bench, family, dtype, layers=2 if family in HYBRIDS else 1)  # theirs are of two kinds
        lengths = (5, 9, 9, 1)
        window = WINDOW if family == "mistral" else None
        visible = torch.block_diag(*(seen_in_text(length, mode, window) for length in lengths)) > 0
        with patch_attention(model, mode, backend=backend):
            moved = movements(model, sum(lengths), bench.device, lambda: packed_inputs(lengths, device=bench.device))
        check_leaks(bench, f"{name}, {mode}: leaks of a packed row", moved, visible)

    bench.record.attempt(f"{name}, {mode}: leaks", compare)


def seen_in_text(length: int, mode: str, window: int | None) -> Tensor:
    """Who sees whom in a text, [length, length]; a causal window holds the token itself, a two-sided one reaches as
    far to both sides."""
    behind = torch.arange(length)[:, None] - torch.arange(length)
    seen = behind >= 0 if mode == "causal" else torch.ones_like(behind, dtype=torch.bool)
    if window is not None:
        seen &= behind.abs() <= (window - 1 if mode == "causal" else window)
    return seen.float()


@torch.no_grad()
def movements(model: Any, tokens: int, device: str, inputs: Callable[[], dict[str, Any]]) -> Tensor:
    """How far position i moves when token j changes, [tokens, tokens]."""
    row = torch.tensor(random_texts([tokens], 400, seed=3), device=device)
    before = model(input_ids=row, use_cache=False, **inputs()).last_hidden_state[0].float()
    moved = []
    for changed in range(tokens):
        other = row.clone()
        other[0, changed] = (row[0, changed] - 2 + 200) % 396 + 2
        after = model(input_ids=other, use_cache=False, **inputs()).last_hidden_state[0].float()
        moved.append((after - before).abs().amax(dim=-1))
    return torch.stack(moved, dim=1).cpu()


def check_leaks(bench: Bench, what: str, moved: Tensor, visible: Tensor) -> None:
    """What sees nothing of a change computes the same numbers in the same order: it must not move at all."""
    leak = float(moved[~visible].max()) if bool((~visible).any()) else 0.0
    deaf = float(moved[visible].min())
    bench.record.check(what, leak == 0.0 and deaf > 0.0, f"unseen moves {leak:.2g}, seen moves at least {deaf:.2g}")


# ------------------------------ masks of training ------------------------------


def masks_of_training(bench: Bench, name: str, family: str, backend: Any, dtype: torch.dtype) -> None:
    """Annealed attention and block diffusion on packed rows. A sliding window would change who sees whom, and hybrids
    are causal."""
    if family == "mistral" or family in HYBRIDS:
        return
    length = 12

    def annealed() -> None:
        draw = torch.rand(length, length, generator=torch.Generator().manual_seed(5)) < 0.4
        visible = torch.block_diag(*[(draw | (seen_in_text(length, "causal", None) > 0)).float()] * 2) > 0
        compare_mask(
            "annealed",
            visible,
            2 * length,
            lambda model: annealed_inputs(model, 0.4, lengths=(length, length), draw=draw.to(bench.device)),
        )

    def blocks() -> None:
        slots = len(block_layout(length, 4).positions)
        allowed = block_mask(slots, 4, bench.device)
        compare_mask(
            "block diffusion",
            allowed[0, 0].cpu(),
            slots,
            lambda model: packed_inputs([slots], device=bench.device) | mask_inputs(model, allowed),
        )

    def compare_mask(kind: str, visible: Tensor, tokens: int, inputs: Callable[[Any], dict[str, Any]]) -> None:
        model = loaded(bench, family, dtype, layers=1)
        with patch_attention(model, "bidirectional", backend=backend):
            moved = movements(model, tokens, bench.device, lambda: inputs(model))
        everyone = torch.eye(tokens, dtype=torch.bool) | visible
        check_leaks(bench, f"{name}: {kind} leaks", moved, everyone)

    bench.record.attempt(f"{name}: annealed", annealed)
    bench.record.attempt(f"{name}: block diffusion", blocks)
