"""Rotary frequencies that depend on a text's length (`longrope`, `dynamic`), chosen text by text in a packed row.

transformers chooses them for a whole row, by its largest position: a long text would change the short ones beside it.
With `dynamic` it would also change those that follow in later rows, because the module keeps the longest text's
frequencies. Here each text gets the frequencies that it has when it is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


LENGTH_DEPENDENT = ("longrope", "dynamic")
WRAPPED = "chooses_by_text"  # attribute of a rotary module


@dataclass(frozen=True)
class TextSpan:
    """Of one text in a row: its tokens, and the largest position among them plus one."""

    tokens: int
    positions: int


# A context variable, not an argument: the decoder's own forward lies between. Threads have one each.
_row: ContextVar[tuple[TextSpan, ...] | None] = ContextVar("row", default=None)


@contextlib.contextmanager
def rotary_by_text(decoder: PreTrainedModel, lengths: Sequence[int], position_ids: Tensor | None) -> Iterator[None]:
    """Within this block the decoder runs one row of texts with these lengths. `position_ids` [T] are None where every
    text counts from 0."""
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None or not any(_is_length_dependent(kind) for kind in _rope_types(rotary)):
        yield
        return
    _wrap(rotary)
    if position_ids is None:
        spans = tuple(TextSpan(length, length) for length in lengths)
    else:
        texts = position_ids.split(list(lengths))
        spans = tuple(TextSpan(len(text), int(text.max()) + 1) for text in texts)
    token = _row.set(spans)
    try:
        yield
    finally:
        _row.reset(token)


def _rope_types(rotary: Any) -> list[str]:
    """The kinds of frequencies in a model; some families have one for each type of layer."""
    kinds = getattr(rotary, "rope_type", "default")
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds]


def _is_length_dependent(kind: str) -> bool:
    return any(name in kind for name in LENGTH_DEPENDENT)  # "dynamic" is part of other names, as in transformers


def _wrap(rotary: Any) -> None:
    """Let the module compute the texts of each length by themselves."""
    if getattr(rotary, WRAPPED, False):
        return
    own_forward = rotary.forward

    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
        layer = {} if layer_type is None else {"layer_type": layer_type}
        spans = _row.get()
        if spans is None or position_ids.shape != (1, sum(span.tokens for span in spans)):
            return own_forward(x, position_ids, **layer)
        groups: dict[int, list[Tensor]] = {}
        start = 0
        for span in spans:
            key = _frequency_key(rotary, span.positions, layer_type)
            groups.setdefault(key, []).append(torch.arange(start, start + span.tokens))
            start += span.tokens
        places = [torch.cat(parts).to(position_ids.device) for parts in groups.values()]
        results = []
        for group in places:
            _forget_longest_text(rotary, layer_type)
            results.append(own_forward(x, position_ids[:, group], **layer))
        order = torch.cat(places).argsort()
        return tuple(torch.cat(part, dim=1)[:, order] for part in zip(*results, strict=True))  # each [1, T, head size]

    rotary.forward = forward
    setattr(rotary, WRAPPED, True)


def _frequency_key(rotary: Any, positions: int, layer_type: str | None) -> int:
    """Texts with the same key have the same frequencies."""
    kind = rotary.rope_type if layer_type is None else rotary.rope_type[layer_type]
    if "dynamic" in kind:
        return max(positions, rotary.original_max_seq_len)
    if kind == "longrope":
        parameters = rotary.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        return int(positions > parameters["original_max_position_embeddings"])
    return 0


def _forget_longest_text(rotary: Any, layer_type: str | None) -> None:
    """Undo what the module has kept of texts beyond the original length."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    frequencies = getattr(rotary, f"{prefix}original_inv_freq").to(getattr(rotary, f"{prefix}inv_freq").device)
    rotary.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    for name in ("max_seq_len_cached", f"{layer_type}_max_seq_len_cached"):  # transformers writes the second one
        setattr(rotary, name, rotary.original_max_seq_len)
