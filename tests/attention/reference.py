"""What attention should be, written out slowly: masks from their definition and the flash functions on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.utils.import_utils import is_torch_greater_or_equal

import attention_patch


def visible(length: int, mode: str, window: int | None, draw: torch.Tensor | None = None) -> torch.Tensor:
    """[length, length], True where the query of that row may attend to the key of that column.

    A causal window of w holds w tokens, a two-sided one reaches w to both sides (transformers' definition).
    """
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            if mode == "bidirectional":
                seen = True
            elif mode == "causal":
                seen = key <= query
            else:
                assert draw is not None
                seen = key <= query or bool(draw[query, key])
            if window is not None:
                seen = seen and abs(query - key) <= (window - 1 if mode == "causal" else window)
            allowed[query, key] = seen
    return allowed


@dataclass
class FlashCall:
    """What one call of a flash function was given."""

    causal: bool
    window: tuple[int, int]
    ends: list[int] | None = None
    longest: int | None = None


@dataclass
class FlashReference:
    """The functions of flash-attn in plain torch, and a record of their calls."""

    calls: list[FlashCall] = field(default_factory=list)

    def flash_attn_func(
        self,
        q: torch.Tensor,  # [B, L, heads, head size]
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert dropout_p == 0
        self.calls.append(FlashCall(causal, tuple(window_size)))
        rows = [_flash_row(*row, softmax_scale, causal, window_size, softcap) for row in zip(q, k, v, strict=True)]
        return torch.stack(rows)

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,  # [tokens, heads, head size]
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert dropout_p == 0
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        ends = cu_seqlens_q.tolist()
        self.calls.append(FlashCall(causal, tuple(window_size), ends, int(max_seqlen_q)))
        assert int(max_seqlen_q) == int(max_seqlen_k) >= max(b - a for a, b in pairwise(ends))
        options = (softmax_scale, causal, window_size, softcap)
        return torch.cat([_flash_row(q[a:b], k[a:b], v[a:b], *options) for a, b in pairwise(ends)])

    def varlen_attn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        """torch.nn.attention.varlen.varlen_attn, where a window (w, 0) means causal."""
        assert query.shape == key.shape == value.shape
        lengths = (cu_seq_q, cu_seq_k, max_q, max_k)
        causal = window_size[1] == 0
        return self.flash_attn_varlen_func(
            query, key, value, *lengths, softmax_scale=scale, causal=causal, window_size=window_size
        )


def _flash_row(
    q: torch.Tensor,  # [L, heads, head size]
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: Sequence[int],
    softcap: float,
) -> torch.Tensor:
    length, heads, size = q.shape
    k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (size**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(length)[:, None] - torch.arange(length)
    hidden = torch.zeros(length, length, dtype=torch.bool)
    if causal:
        hidden |= behind < 0
    if window[0] >= 0:
        hidden |= behind > window[0]
    if window[1] >= 0:
        hidden |= -behind > window[1]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@contextmanager
def flash_on_cpu() -> Iterator[FlashReference]:
    """transformers believes in flash-attn and calls these functions instead."""
    reference = FlashReference()
    functions: list[Any] = [reference.flash_attn_func, reference.flash_attn_varlen_func]
    if hasattr(flash_utils, "_flash_with_kvcache_fn"):  # not in transformers 5.2
        functions.append(None)
    functions += [flash_utils._pad_input, flash_utils._unpad_input]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_patch, "is_flash_attn_2_available", lambda: True)
        patch.setattr(flash_utils, "_lazy_imports", lambda *args, **kwargs: functions)
        patch.setattr(flash_utils, "_loaded_implementation", None)
        yield reference


@contextmanager
def torch_kernel_on_cpu() -> Iterator[FlashReference]:
    """attention_patch believes in a CUDA device without flash-attn, where torch's own kernel serves."""
    if not is_torch_greater_or_equal("2.10"):
        pytest.skip("torch has a flash kernel of its own since 2.10")
    reference = FlashReference()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_patch, "is_flash_attn_2_available", lambda: False)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", reference.varlen_attn)
        yield reference
