"""A language model that predicts tokens of packed texts: masked ones from both sides, with or without a shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_patch import Backend, Mode, SlidingWindow, patch_attention

from .around_decoder import AroundDecoder
from .packed import PackedBatch, fill_rows, forward_packed
from .token_loss import LanguageModelHead, score_tokens, summed_cross_entropy


NO_LABEL = -100


@dataclass(frozen=True)
class CorruptedText:
    """A text of M slots as the model reads it, with tokens hidden, and what is to be predicted in it."""

    token_ids: Tensor  # [M]
    labels: Tensor  # [M] the token that stood there, `NO_LABEL` where nothing is to be predicted
    weights: Tensor | None = None  # [M] what the loss of a label counts; None: 1
    position_ids: Tensor | None = None  # [M]; None: from 0

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def without_labels(cls, token_ids: Tensor) -> CorruptedText:
        """A text in which nothing is hidden."""
        return cls(token_ids, torch.full_like(token_ids, NO_LABEL))


@dataclass(frozen=True)
class TokenBatch:
    """One packed row, and what is to be predicted in it."""

    packed: PackedBatch
    labels: Tensor  # [T] the token that stood there, `NO_LABEL` where nothing is to be predicted
    weights: Tensor | None = None  # [T] what the loss of a label counts; None: 1
    allowed: Tensor | None = None  # bool [1, 1, M, M], M the longest text: who may attend to whom; None: everyone

    def scored(self, shift: bool) -> Tensor:
        """The positions whose labels count, in the order of the losses, [N]."""
        return (can_be_predicted(self.packed.lengths, shift) & (self.labels != NO_LABEL)).nonzero()[:, 0]

    def scored_weights(self, shift: bool) -> Tensor:
        """What the loss of each of them counts, [N]."""
        scored = self.scored(shift)
        return torch.ones(len(scored)) if self.weights is None else self.weights[scored]

    def shortest_forward(self) -> TokenBatch:
        """One of its tokens, in which nothing is predicted: for a rank that runs fewer forwards than another."""
        token = CorruptedText.without_labels(self.packed.token_ids[:1])
        return pack_corrupted_texts([token])[0]


class TokenScores(NamedTuple):
    """The scores of all batches' labels, one after the other."""

    loss: Tensor  # what the labels count times their losses, summed; the only one with a gradient
    losses: Tensor  # [N] float32
    correct: Tensor | None  # [N] bool, where it was asked for


def can_be_predicted(lengths: Sequence[int], shift: bool) -> Tensor:
    """Which tokens of a packed row have a position that predicts them, [T] bool. With the shift that is the position
    before, which a text's first token does not have: it never looks across a text's border."""
    sizes = torch.tensor(lengths)
    predictable = torch.ones(int(sizes.sum()), dtype=torch.bool)
    if shift:
        predictable[sizes.cumsum(0) - sizes] = False
    return predictable


def pack_corrupted_texts(
    texts: Sequence[CorruptedText], max_tokens: int | None = None, allowed: Tensor | None = None
) -> list[TokenBatch]:
    """Lay out texts in rows of at most `max_tokens` slots, longest first.

    `allowed` [1, 1, S, S] says who may attend to whom in a text of up to S slots.
    """
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    return [_pack(texts, row, allowed) for row in fill_rows(texts, order, max_tokens)]


def pack_again(batches: Sequence[TokenBatch], max_tokens: int) -> list[TokenBatch]:
    """The rows that `pack_corrupted_texts` makes of the same texts for `max_tokens`. The first row has the longest
    text, and with it the whole of who may attend to whom."""
    texts = []
    for batch in batches:
        lengths, packed, count = list(batch.packed.lengths), batch.packed, len(batch.packed.lengths)
        parts = [
            [None] * count if tensor is None else tensor.split(lengths)
            for tensor in (packed.token_ids, batch.labels, batch.weights, packed.position_ids)
        ]
        texts += [CorruptedText(*fields) for fields in zip(*parts, strict=True)]
    return pack_corrupted_texts(texts, max_tokens, batches[0].allowed)


def _pack(texts: Sequence[CorruptedText], indices: Sequence[int], allowed: Tensor | None) -> TokenBatch:
    row = [texts[index] for index in indices]
    longest = len(row[0])
    positions = None
    if any(text.position_ids is not None for text in row):
        positions = torch.cat(
            [torch.arange(len(text)) if text.position_ids is None else text.position_ids for text in row]
        )
    weights = None
    if any(text.weights is not None for text in row):
        weights = torch.cat([torch.ones(len(text)) if text.weights is None else text.weights for text in row])
    packed = PackedBatch(
        token_ids=torch.cat([text.token_ids for text in row]),
        lengths=tuple(len(text) for text in row),
        text_indices=tuple(indices),
        position_ids=positions,
    )
    return TokenBatch(
        packed,
        labels=torch.cat([text.labels for text in row]),
        weights=weights,
        allowed=None if allowed is None else allowed[..., :longest, :longest],
    )


class TokenPredictor(AroundDecoder):
    """The module that trainers of masked-token stages wrap.

    `backbone` is a causal language model as the host loads it, with PEFT's wrapper around it if it has LoRA layers.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        shift: bool,
        attention: Mode = "bidirectional",
        sliding_window: SlidingWindow = "keep",
        backend: Backend | None = None,
    ) -> None:
        super().__init__(backbone)
        self.shift = shift
        self.attention = patch_attention(backbone, attention, sliding_window=sliding_window, backend=backend)
        self.recompute_logits = False  # for engines that cut the head up

    def forward(self, batches: Sequence[TokenBatch], with_correct: bool = False) -> TokenScores:
        """The cross entropy of every label that can be predicted, in the order of `TokenBatch.scored`, and their sum.

        All forwards of a step happen in one call, which is what DDP, FSDP and ZeRO expect of the module they wrap.
        """
        states, labels, weights, first_states = [], [], [], []
        for batch in batches:
            (hidden,) = forward_packed(self.decoder, batch.packed, allowed=batch.allowed)  # [T, d]
            scored = batch.scored(self.shift)
            predicted_from = (scored - 1 if self.shift else scored).to(hidden.device, non_blocking=True)
            states.append(hidden[predicted_from])
            first_states.append(hidden[:1])
            labels.append(batch.labels[scored].to(hidden.device, non_blocking=True))
            weights.append(batch.scored_weights(self.shift).to(hidden.device, torch.float32, non_blocking=True))
        targets, counts = torch.cat(labels), torch.cat(weights)  # [N]
        count = len(targets)
        if count == 0:  # a token that counts nothing, so that gradients (zero) reach all that learns, on every rank
            states = [torch.cat(first_states).sum(dim=0, keepdim=True)]
            targets, counts = targets.new_zeros(1), counts.new_zeros(1)
        head = LanguageModelHead.of_model(self.backbone)
        if with_correct:
            losses, correct = score_tokens(torch.cat(states), head, targets)
            return TokenScores((losses * counts).sum(), losses[:count], correct[:count])
        loss, losses = summed_cross_entropy(torch.cat(states), head, targets, counts, recompute=self.recompute_logits)
        return TokenScores(loss, losses[:count], None)
