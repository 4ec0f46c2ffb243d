"""Which tokens masked next-token prediction hides: statistics, closed forms, and what is never touched."""

from __future__ import annotations

import pytest
import torch

from llamafactory_embed.model.token_predictor import NO_LABEL
from llamafactory_embed.train.embed.mntp.corruption import (
    LONGEST_SPAN,
    SPAN_ENDS,
    Masking,
    MntpCorruption,
    choose_spans,
    start_probability,
)


SPECIAL = frozenset({0, 1})
MASK = 7
VOCABULARY = 1000


def corruption(masking: Masking, probability: float = 0.3, shift: bool = True) -> MntpCorruption:
    return MntpCorruption(0, MASK, VOCABULARY, SPECIAL, probability, masking, shift)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("masking", ["bert", "all_mask", "random_span"])
@pytest.mark.parametrize("shift", [True, False])
def test_what_is_never_hidden(masking: Masking, shift: bool) -> None:
    """Special tokens, and under the shift the first token of each text, at any probability."""
    lengths = [4, 1, 300, 7] * 20
    tokens = torch.randint(VOCABULARY, (sum(lengths),), generator=generator())
    firsts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    inputs, labels = corruption(masking, 0.999, shift).hide(tokens, lengths, generator())
    hidden = labels != NO_LABEL
    special = (tokens == 0) | (tokens == 1)
    assert not hidden[special].any()
    assert hidden[firsts[~special[firsts]]].any() != shift
    assert torch.equal(labels[hidden], tokens[hidden])
    assert torch.equal(inputs[~hidden], tokens[~hidden])
    if masking != "bert":
        assert (inputs[hidden] == MASK).all()
    assert float(hidden.float().mean()) > 0.9


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 0.9])
def test_share_and_length_of_spans(probability: float) -> None:
    """In the middle of a text a token is hidden with the probability asked for, in runs longer than chance makes."""
    count = 400_000
    chosen = choose_spans([count], probability, generator())
    assert float(chosen[LONGEST_SPAN:].float().mean()) == pytest.approx(probability, abs=0.01)
    runs = int((chosen[1:] & ~chosen[:-1]).sum())
    # A run begins where a span begins behind a token that is free: whatever reaches over that token covers it, too.
    assert runs / count == pytest.approx(start_probability(probability) * (1 - probability), rel=0.05)


def test_spans_stay_in_their_text() -> None:
    """The first token of a text is hidden only if a span begins there, however full the text before it is."""
    probability = 0.6
    lengths = [12] * 20_000
    chosen = choose_spans(lengths, probability, generator()).view(-1, 12).float().mean(dim=0)
    assert float(chosen[0]) == pytest.approx(start_probability(probability), abs=0.02)
    assert float(chosen[-1]) == pytest.approx(probability, abs=0.02)


def test_the_longest_span() -> None:
    chosen = choose_spans([1_000_000], 0.001, generator())
    edges = torch.diff(torch.nn.functional.pad(chosen.long(), (1, 1)))
    lengths = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
    expected = (1 - (1 - SPAN_ENDS) ** LONGEST_SPAN) / SPAN_ENDS  # the mean of a geometric law that stops there
    assert float(lengths.float().mean()) == pytest.approx(expected, abs=0.4)
    assert float((lengths > LONGEST_SPAN).float().mean()) < 0.02  # two that touch


def test_draws_belong_to_the_generator() -> None:
    tokens = torch.randint(2, VOCABULARY, (500,), generator=generator())
    for masking in ("bert", "all_mask", "random_span"):
        corrupt = corruption(masking)
        first, again, other = (corrupt.hide(tokens, [500], generator(seed))[1] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
