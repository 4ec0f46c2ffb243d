"""Guesses and their confidence, and the choice of positions, against closed forms and transformers' own filters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamafactory_embed.sampling import guesses, schedules
from tests.rounding import rounding_of_sum


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2


def assert_keeps_top_p(kept: Tensor, logits: Tensor, top_p: float) -> None:
    """A token goes if those that are more probable add up to more than `top_p`, in double precision; unless the sum,
    in float32 and the machine's own order, may come out on either side of it. What stays is unchanged."""
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    summed = ordered.softmax(dim=-1).cumsum(dim=-1)
    before = torch.zeros_like(summed).scatter(-1, order, torch.cat([0 * summed[..., :1], summed[..., :-1]], dim=-1))
    is_undecided = (before - top_p).abs() <= rounding_of_sum(logits.shape[-1])
    assert is_undecided.double().mean() < 0.01
    is_kept = kept.isfinite()
    assert torch.equal(is_kept[~is_undecided], (before <= top_p)[~is_undecided])
    assert torch.equal(kept[is_kept], logits[is_kept])
    assert kept[~is_kept].isneginf().all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_what_transformers_keeps(logits: Tensor, top_p: float) -> None:
    assert_keeps_top_p(TopPLogitsWarper(top_p)(None, logits.clone()), logits, top_p)
    assert_keeps_top_p(guesses.keep_top_p(logits, top_p), logits, top_p)


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary(top_p: float) -> None:
    """Rows that keep few tokens, and rows that keep more than were looked at first."""
    logits = torch.randn(6, 4 * guesses.LIKELY_TOKENS, generator=torch.Generator().manual_seed(0))
    logits *= torch.tensor([8.0, 0.1, 4.0, 0.0, 1.0, 16.0]).unsqueeze(-1)
    kept = guesses.keep_top_p(logits, top_p)
    theirs = TopPLogitsWarper(top_p)(None, logits.clone())
    counts, expected = (each.isfinite().sum(dim=-1) for each in (kept, theirs))
    if top_p > 0.1:
        assert int(counts.min()) < guesses.LIKELY_TOKENS < int(counts.max())
    # What is as probable as the last that is kept may be kept instead of it: all of the fourth row.
    has_ties = torch.arange(6) == 3
    assert_keeps_top_p(theirs[~has_ties], logits[~has_ties], top_p)
    assert_keeps_top_p(kept[~has_ties], logits[~has_ties], top_p)
    assert abs(int(counts[3]) - int(expected[3])) <= 1


@pytest.mark.parametrize("wrong_p", [0.4, 0.6])
def test_a_wrong_top_p_is_noticed(wrong_p: float, logits: Tensor) -> None:
    large = torch.randn(6, 4 * guesses.LIKELY_TOKENS, generator=torch.Generator().manual_seed(0))
    for each in (logits, large):
        with pytest.raises(AssertionError):
            assert_keeps_top_p(guesses.keep_top_p(each, wrong_p), each, 0.5)


@pytest.mark.parametrize("top_k", [1, 7, 39, 400])
def test_top_k_keeps_what_transformers_keeps(logits: Tensor, top_k: int) -> None:
    assert torch.equal(guesses.keep_top_k(logits, top_k), TopKLogitsWarper(top_k)(None, logits.clone()))


def test_top_k_of_zero_keeps_all(logits: Tensor) -> None:
    assert torch.equal(guesses.keep_top_k(logits, 0), logits)


def test_repetition_penalty_is_that_of_transformers(logits: Tensor) -> None:
    text = torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(1))
    present = torch.zeros(6, 40, dtype=torch.bool).scatter(1, text, True)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(text, logits.clone())
    torch.testing.assert_close(guesses.penalize_repetition(logits, present, 1.7), theirs)


def test_tokens_are_drawn_in_proportion_to_their_probability() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.25, 0.6, 0.05])
    grid = (torch.arange(1000) + 0.5) / 1000  # numbers spread evenly: shares come out exactly
    drawn = guesses.draw_tokens(probabilities.log().expand(1000, -1), grid)
    assert torch.bincount(drawn, minlength=5).tolist() == [100, 0, 250, 600, 50]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_numbers_draw_no_impossible_token(uniform: float) -> None:
    log_probabilities = torch.tensor([[-math.inf, 0.0, -math.inf]])
    assert guesses.draw_tokens(log_probabilities, torch.tensor([uniform])).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 1), (0.0, 1)])
def test_a_banned_token_is_never_guessed(temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0]]).expand(500, -1)
    made = guesses.make_guesses(
        logits,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        uniforms=torch.rand(500, generator=torch.Generator().manual_seed(0)),
        banned=torch.tensor([1]),
    )
    assert 1 not in made.tokens
    if temperature == 0:
        assert set(made.tokens.tolist()) == {2}


def test_a_banned_token_keeps_its_share_of_the_probability() -> None:
    made = guesses.make_guesses(torch.tensor([[1.0, 1.0, 0.0]]).log(), banned=torch.tensor([1]))
    assert made.tokens.tolist() == [0]
    torch.testing.assert_close(guesses.plain_probability(made), torch.tensor([0.5]))


def test_temperature_changes_the_filtered_probability_and_not_the_plain_one() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    made = guesses.make_guesses(logits, temperature=0.5, top_k=2, uniforms=torch.tensor([0.1]))
    assert made.tokens.tolist() == [0]
    torch.testing.assert_close(guesses.plain_probability(made), torch.tensor([0.6]))
    torch.testing.assert_close(guesses.filtered_probability(made), torch.tensor([0.36 / 0.45]))
    torch.testing.assert_close(guesses.probability_margin(made), torch.tensor([(0.36 - 0.09) / 0.45]))


def test_entropy_of_equal_tokens() -> None:
    made = guesses.make_guesses(torch.zeros(1, 8))
    torch.testing.assert_close(guesses.negative_entropy(made), torch.tensor([-math.log(8)]))


# ------------------------------------------- the choice of positions --------------------------------------------


def test_the_most_confident_positions_of_each_row() -> None:
    confidence = torch.tensor([[0.9, 0.2, 0.8, 0.8, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5]])
    eligible = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    chosen = schedules.most_confident(confidence, eligible, [2, 9])
    assert chosen.nonzero().tolist() == [[0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert not schedules.most_confident(confidence, eligible, [0, 0]).any()
    assert schedules.most_confident(confidence, eligible, [1, 1]).nonzero().tolist() == [[0, 2], [1, 3]]


def test_noise_draws_positions_from_the_softmax() -> None:
    confidence = torch.tensor([0.5, 1.0, 0.1, 0.4])
    uniforms = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0))
    noisy = schedules.with_gumbel_noise(confidence.expand(20000, -1), 0.3, uniforms)
    chosen = schedules.most_confident(noisy, torch.ones_like(noisy, dtype=torch.bool), [1] * 20000)
    torch.testing.assert_close(chosen.float().mean(dim=0), (confidence / 0.3).softmax(-1), atol=0.015, rtol=0)


def test_threshold_reveals_all_that_is_sure_and_at_least_one() -> None:
    confidence = torch.tensor([[0.95, 0.5, 0.91, 0.99], [0.1, 0.3, 0.2, 0.99]])
    eligible = torch.tensor([[True, True, True, False], [True, True, True, False]])
    chosen = schedules.above_threshold(confidence, eligible, 0.9)
    assert chosen.tolist() == [[True, False, True, False], [False, True, False, False]]


def test_factor_reveals_more_the_surer_the_network_is() -> None:
    everything = torch.ones(4, 4, dtype=torch.bool)
    # (n + 1)(1 - c) for n = 1, 2, 3, 4: reveals as long as it stays below 1
    confidence = torch.tensor(
        [
            [0.9, 0.9, 0.9, 0.9],  # .2 .3 .4 .5
            [0.7, 0.9, 0.6, 0.5],  # .2 .9 1.6
            [0.1, 0.2, 0.3, 0.4],  # 1.2: one all the same
            [0.81, 0.99, 0.7, 0.95],  # .02 .15 .76 1.5
        ]
    )
    assert schedules.by_factor(confidence, everything, 1.0).sum(dim=-1).tolist() == [4, 2, 1, 3]
    assert schedules.by_factor(confidence, everything, 1.0)[1].tolist() == [True, True, False, False]


def test_revealed_positions_compete_for_the_lowest_places() -> None:
    scores = torch.tensor([[-5.0, -1.0, -2.0, -4.0, 0.0]])
    in_block = torch.tensor([[True, True, True, True, False]])
    masked = torch.tensor([[False, True, True, True, False]])
    # the two lowest are the revealed first and the fourth: only the fourth stays masked
    assert schedules.all_but_lowest(scores, in_block, masked, [2]).tolist() == [[False, True, True, False, False]]
    assert schedules.all_but_lowest(scores, in_block, masked, [0]).tolist() == masked.tolist()


def test_counts_add_up_to_all_positions() -> None:
    for width in (1, 5, 12, 33):
        for steps in (1, 2, 7, 40):
            assert sum(schedules.counts_in_equal_parts([width], [step], [steps])[0] for step in range(steps)) == width
            masked = width
            for step in range(steps):
                masked -= schedules.counts_by_share([masked], [step], [steps])[0]
            assert masked == 0
            assert schedules.kept_counts([width], [steps - 1], [steps]) == [0]
