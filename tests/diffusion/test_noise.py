"""Schedules, corruption, weights and block diffusion of `stage: ddm`: closed forms and invariances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory_embed.data.document_batches import DocumentRow
from llamafactory_embed.diffusion.batches import TokenCollator
from llamafactory_embed.diffusion.blocks import block_layout, block_mask
from llamafactory_embed.diffusion.bound import BoundCorruption, evaluation_corruptions, hide_exactly
from llamafactory_embed.diffusion.noise import (
    SCHEDULES,
    LossNorm,
    LossWeight,
    NoiseDraws,
    hide_tokens,
    loss_weights,
    spread_uniforms,
    times_from_uniforms,
)
from llamafactory_embed.diffusion.noisy_texts import hideable_tokens, noise_units, noisy_text, weigh_text
from llamafactory_embed.diffusion.texts import Text, texts_of_documents
from llamafactory_embed.hparams.ddm import DiffusionOptions
from llamafactory_embed.model.token_predictor import NO_LABEL, CorruptedText, TokenPredictor, pack_corrupted_texts
from llamafactory_embed.train.ddm.corruption import DiffusionCorruption
from tests.tiny_models import VOCABULARY_SIZE, tiny_model


MASK = VOCABULARY_SIZE - 1
TEXT = [0, 17, 101, 45, 45, 230, 77, 160, 12, 88, 201]


# --------------------------------------------------------------------------------------------------------------------
# Schedules and weights
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_weight_of_the_bound_is_the_logarithmic_derivative_of_the_hidden_share(name: Any) -> None:
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    schedule = SCHEDULES[name]
    (slope,) = torch.autograd.grad(schedule.hidden_share(times).log().sum(), times)
    torch.testing.assert_close(schedule.elbo_weight(times.detach()), slope)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_from_clean_to_hidden(name: Any) -> None:
    shares = SCHEDULES[name].hidden_share(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert float(shares[0]) == 0
    assert float(shares[-1]) == pytest.approx(1, abs=2e-3)
    assert (shares.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_does_not_depend_on_the_schedule(name: Any) -> None:
    """Integrated over the times, a token whose cross entropy is a function of the hidden share counts the same."""
    times = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)[1:-1]
    schedule = SCHEDULES[name]
    shares = schedule.hidden_share(times)
    integrand = loss_weights(times, schedule, "elbo") * shares * (3 + shares**2)
    assert float(integrand.mean()) == pytest.approx(3 + 1 / 3, abs=4e-3)


def test_weights_by_the_schedule_make_every_time_count_alike() -> None:
    times = torch.linspace(0.01, 0.99, 50)
    for schedule in SCHEDULES.values():
        expected = torch.ones(50)
        torch.testing.assert_close(loss_weights(times, schedule, "scheduler") * schedule.hidden_share(times), expected)
        assert torch.equal(loss_weights(times, schedule, "uniform"), expected)
    linear = SCHEDULES["linear"]
    assert torch.equal(loss_weights(times, linear, "scheduler"), loss_weights(times, linear, "elbo"))


# The hand check: V = 7, the mask is token 6, logits are a formula of position and token.
HAND_TOKENS = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
HAND_TIMES = [0.25, 0.5]
HAND_DRAWS = [[0.9, 0.1, 0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.4, 0.45, 0.9, 0.49]]
HAND_SOURCE = [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def hand_loss(
    logits: Tensor, *, shift: bool, norm: LossNorm, weight: LossWeight = "elbo", source: bool = False
) -> float:
    """The loss of two rows whose logits [6, 7] are given."""
    total = count = 0.0
    for tokens, time, draws, is_source in zip(HAND_TOKENS, HAND_TIMES, HAND_DRAWS, HAND_SOURCE, strict=True):
        hideable = hideable_tokens(Text(tokens, [bool(each) for each in is_source] if source else None))
        times = torch.full((6,), time)
        hidden = hide_tokens(hideable, times, torch.tensor(draws), SCHEDULES["linear"])
        text, terms = weighed(torch.tensor(tokens), hidden, times, hideable, shift, norm, weight, mask=6)
        slots = (text.labels != NO_LABEL).nonzero()[:, 0]
        entropies = -logits.log_softmax(-1)[slots - int(shift), text.labels[slots]]
        assert text.weights is not None
        total += float((entropies * text.weights[slots]).sum())
        count += terms
    return total / count


def weighed(
    clean: Tensor,
    hidden: Tensor,
    times: Tensor,
    hideable: Tensor,
    shift: bool,
    norm: LossNorm,
    weight: LossWeight = "elbo",
    mask: int = MASK,
) -> tuple[CorruptedText, float]:
    """A text with what its labels count under a linear schedule, and what it adds to the loss count."""
    noisy = noisy_text(clean, hidden, mask_token_id=mask, shift=shift, block_size=None)
    return weigh_text(noisy, times, hideable, shift=shift, schedule=SCHEDULES["linear"], weight=weight, norm=norm)


@pytest.mark.parametrize(
    ("formula", "options", "expected"),
    [
        ("uniform", {"shift": True, "norm": "masked"}, 4.864775),
        ("uniform", {"shift": False, "norm": "masked"}, 4.670184),
        ("sine", {"shift": True, "norm": "masked"}, 5.745808),
        ("sine", {"shift": True, "norm": "masked", "weight": "uniform"}, 2.296720),
        ("sine", {"shift": False, "norm": "masked"}, 4.361732),
        ("sine", {"shift": False, "norm": "masked", "weight": "uniform"}, 1.875852),
        ("sine", {"shift": True, "norm": "masked", "source": True}, 4.646644),
        ("sine", {"shift": False, "norm": "token"}, 1.817388),
    ],
)
def test_hand_check(formula: str, options: dict[str, Any], expected: float) -> None:
    positions, tokens = torch.arange(6)[:, None], torch.arange(7)
    logits = torch.zeros(6, 7) if formula == "uniform" else torch.sin(0.37 * (7 * positions + tokens))
    assert hand_loss(logits, **options) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_a_constant_cross_entropy_is_the_loss_on_average(norm: LossNorm, shift: bool) -> None:
    """The norms that make a bound: a cross entropy of c everywhere gives c, for texts of different lengths."""
    draws = NoiseDraws(seed=0, rows_per_step=500, antithetic=True, time_epsilon=1e-3)
    total = count = 0.0
    for place in range(500):
        length = 5 + place % 40
        units = noise_units(length, None)
        times, uniforms = draws.draw(0, place, units)
        clean, hideable = torch.zeros(length, dtype=torch.long), torch.ones(length, dtype=torch.bool)
        hidden = hide_tokens(hideable, times, uniforms, SCHEDULES["linear"])
        text, terms = weighed(clean, hidden, times, hideable, shift, norm)
        assert text.weights is not None
        total += float(text.weights.sum())
        count += terms
    assert total / count == pytest.approx(1, abs=0.1)


# --------------------------------------------------------------------------------------------------------------------
# Draws
# --------------------------------------------------------------------------------------------------------------------


def test_antithetic_times_fall_one_into_each_stratum() -> None:
    rows, units = 8, 3
    spread = torch.cat(
        [spread_uniforms(torch.rand(units, dtype=torch.float64), row, rows, 0.37) for row in range(rows)]
    )
    strata = (((spread - 0.37) % 1) * rows * units).floor()
    assert sorted(strata.tolist()) == list(range(rows * units))


def test_without_antithetic_times_rows_draw_by_themselves() -> None:
    units = torch.zeros(4, dtype=torch.long)
    apart = NoiseDraws(seed=3, rows_per_step=4, antithetic=False, time_epsilon=1e-3)
    other_step = NoiseDraws(seed=3, rows_per_step=64, antithetic=False, time_epsilon=1e-3)
    assert torch.equal(apart.draw(0, 5, units)[0], other_step.draw(0, 5, units)[0])
    spread = NoiseDraws(seed=3, rows_per_step=64, antithetic=True, time_epsilon=1e-3)
    assert not torch.equal(apart.draw(0, 5, units)[0], spread.draw(0, 5, units)[0])


def test_draws_belong_to_the_row_and_the_epoch() -> None:
    draws = NoiseDraws(seed=3, rows_per_step=4, antithetic=True, time_epsilon=1e-3)
    units = torch.tensor([0, 0, 1, 1])
    times, uniforms = draws.draw(1, 6, units)
    assert torch.equal(draws.draw(1, 6, units)[1], uniforms)
    assert times[0] == times[1] != times[2]
    assert ((times >= 1e-3) & (times < 1)).all()
    for other in (draws.draw(0, 6, units), draws.draw(1, 7, units)):
        assert not torch.equal(other[1], uniforms)
        assert not torch.equal(other[0], times)


def test_times_start_at_the_earliest() -> None:
    torch.testing.assert_close(times_from_uniforms(torch.tensor([0.0, 0.5]), 0.2), torch.tensor([0.2, 0.6]))


def test_prompts_and_natural_mask_tokens_are_not_hidden() -> None:
    tokens = [MASK, 5, MASK, 7]
    text = Text(tokens, [True, True, False, False])
    draws = torch.tensor([0.0, 0.0, 0.9, 0.0])
    clean, hideable, times = torch.tensor(tokens), hideable_tokens(text), torch.full((4,), 0.5)
    hidden = hide_tokens(hideable, times, draws, SCHEDULES["linear"])
    assert hidden.tolist() == [False, False, False, True]
    noisy, scorable = weighed(clean, hidden, times, hideable, shift=False, norm="token")
    assert noisy.token_ids.tolist() == [MASK, 5, MASK, MASK]
    assert noisy.labels.tolist() == [NO_LABEL, NO_LABEL, NO_LABEL, 7]
    assert scorable == 2


# --------------------------------------------------------------------------------------------------------------------
# Block diffusion
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 11, 20])
@pytest.mark.parametrize("length", [1, 2, 7, 11])
def test_block_mask_follows_the_definition(length: int, block_size: int) -> None:
    layout = block_layout(length, block_size)
    slots = len(layout.positions)
    longest = block_mask(slots + 5, block_size)[0, 0]
    for query, key in itertools.product(range(slots), repeat=2):
        query_block = int(layout.positions[query]) // block_size
        key_block = int(layout.positions[key]) // block_size
        if layout.noisy[query]:
            may = key_block == query_block if layout.noisy[key] else key_block < query_block
        else:
            may = not layout.noisy[key] and key_block <= query_block
        assert bool(longest[query, key]) == may
    noisy = layout.positions[layout.noisy]
    assert noisy.tolist() == list(range(length))
    last_block = (length - 1) // block_size
    assert layout.positions[~layout.noisy].tolist() == list(range(last_block * block_size))


def block_losses(model: TokenPredictor, hidden: Tensor, block_size: int | None) -> Tensor:
    """Cross entropies of the hidden tokens of `TEXT`."""
    noisy = noisy_text(torch.tensor(TEXT), hidden, mask_token_id=MASK, shift=model.shift, block_size=block_size)
    allowed = None if block_size is None else block_mask(len(noisy), block_size)
    return model(pack_corrupted_texts([noisy], allowed=allowed)).losses


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@torch.no_grad()
def test_blocks_of_one_token_are_the_autoregressive_model(family: str) -> None:
    """With a shift each token is predicted from the clean ones before it, by a causal pass over these."""
    model = tiny_model(family)
    causal = model(input_ids=torch.tensor([TEXT])).logits[0, :-1].log_softmax(-1)
    expected = -causal[torch.arange(len(TEXT) - 1), torch.tensor(TEXT[1:])]
    losses = block_losses(TokenPredictor(model, shift=True), torch.ones(len(TEXT), dtype=torch.bool), 1)
    torch.testing.assert_close(losses, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_one_block_is_plain_diffusion(shift: bool) -> None:
    model = TokenPredictor(tiny_model("llama"), shift=shift)
    hidden = torch.tensor([number % 3 != 1 for number in range(len(TEXT))])
    whole = block_losses(model, hidden, None)
    torch.testing.assert_close(block_losses(model, hidden, len(TEXT)), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(block_losses(model, hidden, 4), whole, atol=1e-2)


@torch.no_grad()
def test_a_block_sees_itself_and_the_clean_text_before_it() -> None:
    """Predictions of a block are those of plain diffusion on the clean text up to it and the noisy block, when the
    states before it come from a block-causal pass: exact for the second of two blocks under one layer of attention."""
    size = 6
    model = tiny_model("llama", num_hidden_layers=1)
    hidden = torch.tensor([number % 2 == 0 for number in range(len(TEXT))])
    losses = block_losses(TokenPredictor(model, shift=False), hidden, size)
    in_second_block = hidden & (torch.arange(len(TEXT)) >= size)
    model.config.is_causal = False
    states = TokenPredictor(model, shift=False)
    alone = noisy_text(torch.tensor(TEXT), in_second_block, mask_token_id=MASK, shift=False, block_size=None)
    expected = states(pack_corrupted_texts([alone])).losses
    torch.testing.assert_close(losses[-len(expected) :], expected, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# The collator
# --------------------------------------------------------------------------------------------------------------------


def rows_of(lengths: Sequence[Sequence[int]]) -> list[DocumentRow]:
    generator = torch.Generator().manual_seed(5)
    return [
        DocumentRow(torch.randint(3, MASK, (sum(row),), generator=generator).tolist(), list(row), epoch=0, place=place)
        for place, row in enumerate(lengths)
    ]


def collator(shift: bool = True, rows_per_step: int = 4, max_tokens: int = 20, **options: Any) -> TokenCollator:
    draws = NoiseDraws(seed=1, rows_per_step=rows_per_step, antithetic=True, time_epsilon=1e-3)
    corruption = DiffusionCorruption(DiffusionOptions(**options), draws, MASK, shift)
    return TokenCollator(texts_of_documents, corruption, max_tokens)


def loss_of(model: TokenPredictor, inputs: Sequence[dict[str, Any]]) -> Tensor:
    return sum(model(each["batches"]).loss for each in inputs) / sum(float(each["loss_count"]) for each in inputs)


def evaluation_collator(samples: int) -> TokenCollator:
    return TokenCollator(texts_of_documents, BoundCorruption(samples, MASK, shift=True, block_size=None), 40)


LENGTHS = [[9, 4], [12], [3, 3, 5], [7]]


@pytest.mark.parametrize("norm", ["token", "sequence", "masked"])
def test_micro_batches_add_up_to_the_large_batch(norm: str) -> None:
    model = TokenPredictor(tiny_model("llama"), shift=True)
    rows, make = rows_of(LENGTHS), collator(loss_norm=norm)
    loss_of(model, [make(rows)]).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss_of(model, [make(rows[:1]), make(rows[1:3]), make(rows[3:])]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_documents_are_as_separate_ones() -> None:
    """No document sees another, whichever row it lies in: each one's losses are those it has alone."""
    model = TokenPredictor(tiny_model("llama"), shift=True)
    batches = collator()(rows_of(LENGTHS))["batches"]
    found = model(batches).losses
    alone = []
    for packed in batches:
        starts = [0, *itertools.accumulate(packed.packed.lengths)]
        for start, end in itertools.pairwise(starts):
            ids = packed.packed.token_ids[start:end]
            logits = model.backbone(input_ids=ids[None]).logits[0].log_softmax(-1)
            labels = packed.labels[start:end]
            slots = [slot for slot in range(1, end - start) if labels[slot] != NO_LABEL]
            alone += [-logits[slot - 1, labels[slot]] for slot in slots]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_documents_of_a_row_have_times_of_their_own() -> None:
    row = rows_of([[30, 30, 30]])[0]
    (batch,) = collator(shift=False, rows_per_step=1, max_tokens=100)([row])["batches"]
    weights = [text[text > 0].unique() for text in batch.weights.split(batch.packed.lengths)]
    assert [len(each) for each in weights] == [1, 1, 1]
    assert len({float(each) for each in weights}) == 3


def test_filler_rows_teach_nothing() -> None:
    rows = [row.as_filler() for row in rows_of(LENGTHS)]
    for inputs in (collator()(rows), evaluation_collator(samples=2)(rows)):
        assert float(inputs["loss_count"]) == 0
        assert all((each.labels == NO_LABEL).all() for each in inputs["batches"])


# --------------------------------------------------------------------------------------------------------------------
# The bound
# --------------------------------------------------------------------------------------------------------------------


def test_an_exact_number_is_hidden_in_each_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    hideable = torch.rand(40, generator=generator) < 0.7
    units = noise_units(40, 8)
    hidden, weights = hide_exactly(
        hideable, units, torch.tensor([0.0, 0.2, 0.5, 0.99, 0.7], dtype=torch.float64), torch.rand(40)
    )
    assert not (hidden & ~hideable).any()
    for unit, share in enumerate((1.0, 0.8, 0.5, 0.01, 0.3)):
        own = units == unit
        count = int(hideable[own].sum())
        wanted = math.ceil(share * count - 1e-9)
        assert int(hidden[own].sum()) == wanted
        torch.testing.assert_close(weights[own], torch.full((8,), count / wanted))


def exact_bound(model: TokenPredictor, tokens: list[int]) -> float:
    """The bound of a short text by enumeration of what can be hidden."""
    clean = torch.tensor(tokens)
    candidates = range(int(model.shift), len(tokens))
    total = 0.0
    for count in range(1, len(candidates) + 1):
        sets = list(itertools.combinations(candidates, count))
        for chosen in sets:
            hidden = torch.zeros(len(tokens), dtype=torch.bool)
            hidden[list(chosen)] = True
            noisy = noisy_text(clean, hidden, mask_token_id=MASK, shift=model.shift, block_size=None)
            losses = model(pack_corrupted_texts([noisy])).losses
            total += float(losses.sum()) * len(candidates) / count / len(sets) / len(candidates)
    return total


@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_the_estimate_converges_to_the_bound(shift: bool) -> None:
    model = TokenPredictor(tiny_model("llama"), shift=shift)
    tokens = TEXT[:4]
    expected = exact_bound(model, tokens)
    samples = 800
    scored = evaluation_corruptions(Text(tokens), (0,), samples, mask_token_id=MASK, shift=shift, block_size=None)
    batches = pack_corrupted_texts(scored)
    found = model(batches).losses * batches[0].scored_weights(shift)
    assert float(found.sum()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("block_size", [None, 1, 4])
def test_a_constant_cross_entropy_is_the_bound_exactly(block_size: int | None) -> None:
    """Whatever is drawn: every corruption of a text counts its tokens once."""
    text = Text(TEXT, [number < 3 for number in range(len(TEXT))])
    for shift in (False, True):
        scored = evaluation_corruptions(text, (7,), 3, mask_token_id=MASK, shift=shift, block_size=block_size)
        total = sum(float(each.weights[each.labels != NO_LABEL].sum()) for each in scored)
        assert total == pytest.approx(len(TEXT) - 3, rel=1e-6)


def test_an_evaluation_hides_the_same_tokens_in_every_order_of_batches() -> None:
    rows, collate = rows_of(LENGTHS), evaluation_collator(samples=3)

    def texts(inputs: dict[str, Any]) -> list[list[int]]:
        return sorted(
            text.tolist() for batch in inputs["batches"] for text in batch.packed.token_ids.split(batch.packed.lengths)
        )

    together = collate(rows)
    apart = [collate([row]) for row in reversed(rows)]
    assert texts(together) == sorted(text for each in apart for text in texts(each))
    assert float(together["loss_count"]) == sum(float(each["loss_count"]) for each in apart)
    documents = sum(len(row) for row in LENGTHS)
    assert float(together["loss_count"]) == sum(map(sum, LENGTHS)) - documents  # first tokens are given
