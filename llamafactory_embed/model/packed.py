"""Padding-free forward: texts lie end to end in one row of tokens, and only attention knows where each one ends.

Linear layers never see padding, so a batch whose rows are one third full costs one third. Attention runs text by text:
varlen kernels on CUDA, grouped calls on a CPU (`attention_patch`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attention_patch import mask_inputs, packed_inputs

from .rotary import rotary_by_text


Lengths: TypeAlias = Sequence[int] | Tensor  # the number of tokens of each text, at least one


@dataclass(frozen=True)
class PackedBatch:
    """Some of the given texts as one row of tokens; equal lengths are neighbours, which a CPU attends to at once."""

    token_ids: Tensor  # [T], T = sum of lengths
    lengths: tuple[int, ...]
    text_indices: tuple[int, ...]  # which of the given texts each one is
    pooled_tokens: Tensor | None = None  # [T] bool, the tokens that pooling counts; None: all
    position_ids: Tensor | None = None  # [T]; None: from 0 in every text

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        pooled_tokens = None if self.pooled_tokens is None else self.pooled_tokens.to(device, non_blocking=True)
        position_ids = None if self.position_ids is None else self.position_ids.to(device, non_blocking=True)
        return PackedBatch(
            self.token_ids.to(device, non_blocking=True), self.lengths, self.text_indices, pooled_tokens, position_ids
        )

    def split(self, texts_each: Sequence[int]) -> list[PackedBatch]:
        """Its texts in consecutive parts of so many texts each; their tensors are views."""
        ends = list(itertools.accumulate(texts_each))
        firsts = [0, *ends[:-1]]
        tokens = [sum(self.lengths[first:end]) for first, end in zip(firsts, ends, strict=True)]

        def parts(tensor: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(ends) if tensor is None else tensor.split(tokens)

        return [
            PackedBatch(token_ids, self.lengths[first:end], self.text_indices[first:end], pooled, positions)
            for token_ids, first, end, pooled, positions in zip(
                self.token_ids.split(tokens),
                firsts,
                ends,
                parts(self.pooled_tokens),
                parts(self.position_ids),
                strict=True,
            )
        ]


# A forward whose activations stay in a CPU's caches encodes faster. In training they do not stay, and each forward has
# a gradient of the whole embedding, which is filled with zeros and added. An accelerator wants large products.
TOKENS_PER_BATCH_ON_CPU = 1024
TOKENS_PER_TRAINING_BATCH_ON_CPU = 4096
TOKENS_PER_BATCH = 16384


def tokens_per_batch(asked: int | None, device: torch.device | str, *, training: bool = False) -> int:
    """The most tokens of one forward: `max_tokens_per_batch`, or what suits the device."""
    if asked is not None:
        return asked
    if torch.device(device).type != "cpu":
        return TOKENS_PER_BATCH
    return TOKENS_PER_TRAINING_BATCH_ON_CPU if training else TOKENS_PER_BATCH_ON_CPU


def pack_texts(
    texts: Sequence[Sequence[int]], max_tokens: int | None = None, pooled_from: Sequence[int] | None = None
) -> list[PackedBatch]:
    """Lay out tokenized texts in rows of at most `max_tokens` tokens (one row without a limit), longest texts first,
    so that a row which does not fit into memory fails at the start and not in the middle of an epoch.

    A single text longer than `max_tokens` gets a row of its own. `pooled_from` names each text's first token that
    pooling counts, where that is not its first token.
    """
    if pooled_from is not None and not any(pooled_from):
        pooled_from = None
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    return [_pack(texts, indices, pooled_from) for indices in fill_rows(texts, order, max_tokens)]


def cut_batch(batch: PackedBatch, max_tokens: int) -> list[PackedBatch]:
    """One packed batch of all texts → the rows of at most `max_tokens` tokens that `pack_texts` makes."""
    texts = [range(length) for length in batch.lengths]
    return batch.split([len(row) for row in fill_rows(texts, range(len(texts)), max_tokens)])


def fill_rows(texts: Sequence[Sized], order: Sequence[int], max_tokens: int | None) -> Iterator[list[int]]:
    """The indices of the texts of each row, in that order."""
    row: list[int] = []
    tokens = 0
    for index in order:
        length = len(texts[index])
        if length == 0:
            raise ValueError(f"Text {index} of the batch has no tokens: a text needs at least one to be embedded.")
        if row and max_tokens is not None and tokens + length > max_tokens:
            yield row
            row, tokens = [], 0
        row.append(index)
        tokens += length
    if row:
        yield row


def _pack(texts: Sequence[Sequence[int]], indices: Sequence[int], pooled_from: Sequence[int] | None) -> PackedBatch:
    lengths = tuple(len(texts[index]) for index in indices)
    pooled_tokens = None
    if pooled_from is not None:
        starts = [pooled_from[index] for index in indices]
        pooled_tokens = torch.cat([torch.arange(n) >= start for n, start in zip(lengths, starts, strict=True)])
    return PackedBatch(
        token_ids=torch.tensor([token for index in indices for token in texts[index]], dtype=torch.long),
        lengths=lengths,
        text_indices=tuple(indices),
        pooled_tokens=pooled_tokens,
    )


def find_decoder(model: nn.Module) -> PreTrainedModel:
    """The model below its language-model head, with LoRA layers in place if it has any: embeddings need no logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper has that method
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"{type(base).__name__} is not a transformers model: the packed forward cannot run it.")
    return base.base_model


def forward_packed(
    decoder: PreTrainedModel, batch: PackedBatch, all_layers: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Run a packed batch through a decoder whose attention was set by `attention_patch.patch_attention`.

    Returns the last hidden states, one tensor [T, d]; with `all_layers` one for the embedding and each layer.
    `allowed` (bool [1, 1, M, M], M the longest text) says who may attend to whom inside of each text.
    """
    device = decoder.get_input_embeddings().weight.device
    batch = batch.to(device)
    inputs = packed_inputs(batch.lengths, device=device)
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids.unsqueeze(0)  # [1, T]
    inputs["position_ids"] = inputs["position_ids"] + first_position(decoder)
    if allowed is not None:
        inputs |= mask_inputs(decoder, allowed.to(device, non_blocking=True))
    with rotary_by_text(decoder, batch.lengths, batch.position_ids):
        output = decoder(
            input_ids=batch.token_ids.unsqueeze(0),  # [1, T]
            use_cache=False,
            output_hidden_states=all_layers,
            return_dict=True,
            **inputs,
        )
    states = output.hidden_states if all_layers else (output.last_hidden_state,)
    return tuple(state.squeeze(0) for state in states)  # each [T, d]


def first_position(decoder: PreTrainedModel) -> int:
    """The number of a text's first position in the model's table: RoBERTa and its kin count on from the id of their
    padding token, all others from 0."""
    embeddings = getattr(decoder, "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    has_table = isinstance(getattr(embeddings, "position_embeddings", None), nn.Embedding)
    return padding + 1 if has_table and isinstance(padding, int) else 0


def split_texts(hidden: Tensor, batch: PackedBatch, count: int) -> list[Tensor]:
    """Hidden states [T, d] → one tensor [length, d] for each of `count` texts, in the order they were given."""
    texts: list[Tensor] = [hidden.new_empty(0, hidden.shape[-1])] * count
    for index, states in zip(batch.text_indices, hidden.split(list(batch.lengths)), strict=True):
        texts[index] = states
    return texts


# --------------------------------------------------------------------------------------------------------------------
# Sums and picks over the texts of a row, without a loop: B texts lie end to end in T tokens
# --------------------------------------------------------------------------------------------------------------------


def lengths_tensor(lengths: Lengths, device: torch.device) -> Tensor:
    """Lengths as integers [B] on that device."""
    if isinstance(lengths, Tensor):
        return lengths.to(device=device, dtype=torch.long)
    return torch.tensor(list(lengths), dtype=torch.long, device=device)


def text_of_token(lengths: Tensor, total: int) -> Tensor:
    """The index of the text that each token belongs to, [T]."""
    texts = torch.arange(len(lengths), device=lengths.device)
    return torch.repeat_interleave(texts, lengths, output_size=total)


def count_tokens(pooled_tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled tokens [T] → their number in each text [B], and the rank 1, 2, … of each one within its text [T]."""
    running = pooled_tokens.long().cumsum(0)  # [T]
    ends = lengths.cumsum(0)  # [B]
    up_to_end = running[ends - 1]  # [B]
    before = torch.cat([up_to_end.new_zeros(1), up_to_end[:-1]])  # [B]
    return up_to_end - before, running - before[text_of_token(lengths, len(running))]


def fill_empty_texts(pooled_tokens: Tensor, lengths: Tensor) -> Tensor:
    """Let all tokens of a text count if none of them does, [T]."""
    counts, _ = count_tokens(pooled_tokens, lengths)
    return pooled_tokens | (counts == 0)[text_of_token(lengths, len(pooled_tokens))]


def first_states(hidden: Tensor, lengths: Lengths) -> Tensor:
    """The state of each text's first token, [T, d] → [B, d]."""
    sizes = lengths_tensor(lengths, hidden.device)
    return hidden[sizes.cumsum(0) - sizes].to(pooled_dtype(hidden))


def last_states(hidden: Tensor, lengths: Lengths) -> Tensor:
    """The state of each text's last token, [T, d] → [B, d]."""
    sizes = lengths_tensor(lengths, hidden.device)
    return hidden[sizes.cumsum(0) - 1].to(pooled_dtype(hidden))


def mean_states(
    hidden: Tensor, lengths: Lengths, pooled_tokens: Tensor | None = None, *, growing: bool = False
) -> Tensor:
    """The average of each text's pooled tokens, [T, d] → [B, d]; `growing` weighs them 1, 2, …, m from the left."""
    sizes = lengths_tensor(lengths, hidden.device)
    if pooled_tokens is None:
        pooled_tokens = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    pooled_tokens = fill_empty_texts(pooled_tokens.to(hidden.device), sizes)

    counts, ranks = count_tokens(pooled_tokens, sizes)
    totals = counts * (counts + 1) / 2 if growing else counts  # [B]: what the weights sum to
    numerators = ranks * pooled_tokens if growing else pooled_tokens  # [T]
    weights = numerators.to(pooled_dtype(hidden)) / totals[text_of_token(sizes, len(ranks))]
    # `segment_reduce` and not `index_add`, whose order of summation varies from run to run on CUDA. Its checks of the
    # lengths would wait for the device.
    return torch.segment_reduce(hidden * weights.unsqueeze(1), "sum", lengths=sizes, unsafe=True)


def pooled_dtype(hidden: Tensor) -> torch.dtype:
    """Embeddings are at least float32: similarities are divided by temperatures as small as 0.002."""
    return torch.promote_types(hidden.dtype, torch.float32)
