"""A language model that predicts tokens of packed texts: masked ones from both sides, with or without a shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_patch import Backend, Mode, SlidingWindow, patch_attention

from .around_decoder import AroundDecoder
from .packed import PackedBatch, forward_packed, pack_texts
from .token_loss import LanguageModelHead, score_tokens, summed_cross_entropy


NO_LABEL = -100


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


def pack_predictions(
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    max_tokens: int | None = None,
) -> list[TokenBatch]:
    """Lay out texts [n] with their labels [n] and weights [n] in rows of at most `max_tokens` tokens."""
    batches = []
    for packed in pack_texts([text.tolist() for text in inputs], max_tokens):
        indices = packed.text_indices
        batches.append(
            TokenBatch(
                packed,
                labels=torch.cat([labels[index] for index in indices]),
                weights=None if weights is None else torch.cat([weights[index] for index in indices]),
            )
        )
    return batches


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
