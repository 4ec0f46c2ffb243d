"""Which tokens `stage: mntp` hides, and what the model reads in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ....data.document_batches import DocumentRow
from ....diffusion.batches import CorruptedRow
from ....diffusion.noise import seeded_generator
from ....diffusion.texts import Text
from ....model.token_predictor import NO_LABEL, CorruptedText, can_be_predicted


Masking = Literal["bert", "all_mask", "random_span"]

SHARE_OF_MASKS = 0.8  # BERT (Devlin et al. 2019): of the hidden tokens 80 % masked, 10 % any token, 10 % as they are
SHARE_OF_RANDOM = 0.1

SPAN_ENDS = 0.2  # SpanBERT (Joshi et al. 2020): a span goes on with probability 0.8 …
LONGEST_SPAN = 10  # … up to 10 tokens, 4.5 on average


@dataclass(frozen=True)
class MntpCorruption:
    """Hides tokens of a row as a recipe says; called by the collator."""

    seed: int
    mask_id: int
    vocabulary_size: int
    special_ids: frozenset[int]
    probability: float
    masking: Masking
    shift: bool

    def __call__(self, row: DocumentRow, texts: Sequence[Text]) -> CorruptedRow:
        tokens = torch.tensor([token for text in texts for token in text.token_ids])
        lengths = [len(text) for text in texts]
        inputs, labels = self.hide(tokens, lengths, seeded_generator(self.seed, row.epoch, row.place))
        parts = zip(inputs.split(lengths), labels.split(lengths), strict=True)
        return CorruptedRow([CorruptedText(*part) for part in parts], loss_count=float((labels != NO_LABEL).sum()))

    def hide(self, tokens: Tensor, lengths: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the model reads for the tokens [T] of some texts, and their labels [T]. Special tokens are not hidden,
        nor is what no position predicts."""
        eligible = ~torch.isin(tokens, torch.tensor(sorted(self.special_ids), dtype=tokens.dtype))
        eligible &= can_be_predicted(lengths, self.shift)
        if self.masking == "random_span":
            hidden = eligible & choose_spans(lengths, self.probability, generator)
        else:
            hidden = eligible & choose_tokens(len(tokens), self.probability, generator)
        if self.masking == "bert":
            inputs = hide_like_bert(tokens, hidden, self.mask_id, self.vocabulary_size, generator)
        else:
            inputs = tokens.masked_fill(hidden, self.mask_id)
        return inputs, tokens.masked_fill(~hidden, NO_LABEL)


def choose_tokens(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Each of `count` tokens with this probability, [count] bool."""
    return torch.rand(count, generator=generator) < probability


def hide_like_bert(
    tokens: Tensor, hidden: Tensor, mask_id: int, vocabulary_size: int, generator: torch.Generator
) -> Tensor:
    """Of the hidden tokens most become the mask, some any token of the vocabulary, and some stay, [n]."""
    fate = torch.rand(len(tokens), generator=generator)
    random_tokens = torch.randint(vocabulary_size, tokens.shape, generator=generator)
    is_masked = hidden & (fate < SHARE_OF_MASKS)
    is_random = hidden & (fate >= SHARE_OF_MASKS) & (fate < SHARE_OF_MASKS + SHARE_OF_RANDOM)
    return torch.where(is_random, random_tokens, tokens.masked_fill(is_masked, mask_id))


def choose_spans(lengths: Sequence[int], probability: float, generator: torch.Generator) -> Tensor:
    """Runs of neighbours that do not leave their text, [T] bool; in the middle of a text every token is chosen with
    this probability. (SpanBERT draws spans until a budget is used up. Here a span begins at every token with the same
    chance and may overlap another, so that a token's chance is known and no text is too short.)"""
    sizes = torch.tensor(lengths)
    total = int(sizes.sum())
    ends = sizes.cumsum(0).repeat_interleave(sizes)  # [T] where the token's text ends
    starts = (torch.rand(total, generator=generator) < start_probability(probability)).nonzero()[:, 0]  # [S]
    draws = torch.rand(total, generator=generator)[starts]
    going_on = torch.log(draws.clamp(min=1e-12)) / torch.log(torch.tensor(1 - SPAN_ENDS))
    span_ends = torch.minimum(starts + 1 + going_on.floor().long().clamp(max=LONGEST_SPAN - 1), ends[starts])
    changes = torch.zeros(total + 1, dtype=torch.long)  # +1 where a span begins, -1 after its last token
    changes.index_add_(0, starts, torch.ones_like(starts))
    changes.index_add_(0, span_ends, -torch.ones_like(span_ends))
    return changes.cumsum(0)[:total] > 0


def start_probability(probability: float) -> float:
    """How often a span must begin for a token with a whole span's room before it to be covered this often: the token
    is free if for no k a span longer than k begins k tokens before it."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        free = 1.0
        for distance in range(LONGEST_SPAN):
            free *= 1 - middle * (1 - SPAN_ENDS) ** distance
        low, high = (middle, high) if 1 - free < probability else (low, middle)
    return high
