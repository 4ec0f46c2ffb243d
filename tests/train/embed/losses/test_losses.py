"""Losses against closed forms, plain loops and each other; gradients by finite differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.train.embed.losses import (
    angle,
    cosent,
    info_nce,
    kl_distillation,
    margin_mse,
    matryoshka,
    own_passages_loss,
    repllama,
    simcse,
)
from llamafactory_embed.train.embed.losses.angle import angle_similarity


ROWS, NEGATIVES, SIZE = 5, 3, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, positives, and `NEGATIVES` negatives a row, row after row."""
    return random(rows, SIZE, seed=1), random(rows, SIZE, seed=2), random(rows * NEGATIVES, SIZE, seed=3)


def info_nce_by_loops(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    keep: Callable[[int, int, float, float], bool] = lambda row, owner, similarity, own: True,
) -> Tensor:
    """The definition with cosines; `keep` decides about candidates other than the own positive."""
    losses = []
    owners = [*range(len(positives)), *(index // NEGATIVES for index in range(len(negatives)))]
    for row, query in enumerate(queries):
        own = F.cosine_similarity(query, positives[row], dim=0)
        total = (own / temperature).exp()
        for place, (owner, candidate) in enumerate(zip(owners, [*positives, *negatives], strict=True)):
            similarity = F.cosine_similarity(query, candidate, dim=0)
            if place != row and keep(row, owner, float(similarity), float(own)):
                total = total + (similarity / temperature).exp()
        losses.append(total.log() - own / temperature)
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_loops(temperature: float) -> None:
    inputs = batch()
    losses = info_nce(*inputs, temperature=temperature, reduction="none")
    torch.testing.assert_close(losses, info_nce_by_loops(*inputs, temperature))
    torch.testing.assert_close(info_nce(*inputs, temperature=temperature), losses.mean())


def test_uniform_similarities_cost_the_logarithm_of_the_candidates() -> None:
    ones = torch.ones(ROWS, SIZE, dtype=torch.float64)
    negatives = torch.ones(ROWS * NEGATIVES, SIZE, dtype=torch.float64)
    candidates = ROWS * (1 + NEGATIVES)
    assert float(info_nce(ones, ones, negatives, temperature=0.02)) == pytest.approx(math.log(candidates))
    assert float(info_nce(ones, ones, temperature=0.02, both_directions=True)) == pytest.approx(math.log(ROWS))
    assert float(repllama(ones, ones, negatives.view(ROWS, NEGATIVES, SIZE))) == pytest.approx(math.log(1 + NEGATIVES))


def test_two_candidates_cost_the_softplus_of_their_margin() -> None:
    query, positive, negative = random(1, SIZE, seed=1), random(1, SIZE, seed=2), random(1, SIZE, seed=3)
    margin = float((query @ negative.T - query @ positive.T) / 0.7)
    expected = math.log1p(math.exp(margin))
    assert float(info_nce(query, positive, negative, temperature=0.7, similarity="dot")) == pytest.approx(expected)


def test_a_single_candidate_costs_nothing_and_teaches_nothing() -> None:
    query, positive, _ = batch(rows=1)
    loss = info_nce(query.requires_grad_(), positive, temperature=0.05)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, query)[0].abs().max() == 0


def test_info_nce_does_not_depend_on_the_order_of_candidates() -> None:
    queries, positives, negatives = batch()
    similar = {"temperature": 0.1, "false_negative_margin": 0.1}
    own_only = torch.tensor([True, False, True, False, False])
    duplicates = random(ROWS, ROWS * (1 + NEGATIVES), seed=7) > 1
    losses = info_nce(
        queries, positives, negatives, own_passages_only=own_only, duplicates=duplicates, reduction="none", **similar
    )

    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.randperm(ROWS, generator=generator), torch.randperm(len(negatives), generator=generator)
    places = rows.argsort()  # where positive i went
    shuffled = info_nce(
        queries,
        positives[rows],
        negatives[columns],
        targets=places,
        negative_owners=places[columns // NEGATIVES],
        own_passages_only=own_only,
        duplicates=torch.cat([duplicates[:, rows], duplicates[:, ROWS + columns]], dim=1),
        reduction="none",
        **similar,
    )
    torch.testing.assert_close(shuffled, losses)


def test_a_rank_with_gathered_candidates_computes_its_rows_of_the_joined_batch() -> None:
    queries, positives, negatives = batch(rows=6)
    options: dict[str, Any] = {
        "temperature": 0.1,
        "false_negative_margin": 0.05,
        "both_directions": True,
        "own_passages_only": torch.tensor([False, True, False, False, True, False]),
        "duplicates": random(6, 6 * (1 + NEGATIVES), seed=8) > 1.5,
    }
    joined = info_nce(queries, positives, negatives, reduction="none", **options)
    for rows in (slice(0, 3), slice(3, 6)):
        local = {name: value[rows] if isinstance(value, Tensor) else value for name, value in options.items()}
        part = info_nce(
            queries[rows],
            positives,
            negatives,
            targets=torch.arange(6)[rows],
            all_queries=queries,
            reduction="none",
            **local,
        )
        torch.testing.assert_close(part, joined[rows])


def test_own_passages_only() -> None:
    queries, positives, negatives = batch()
    own_only = torch.tensor([True, False, False, True, True])
    losses = info_nce(queries, positives, negatives, temperature=0.1, own_passages_only=own_only, reduction="none")
    expected = info_nce_by_loops(
        queries, positives, negatives, 0.1, lambda row, owner, similarity, own: owner == row or not own_only[row]
    )
    torch.testing.assert_close(losses, expected)

    passages = torch.cat([positives.unsqueeze(1), negatives.view(ROWS, NEGATIVES, SIZE)], dim=1)
    alone = own_passages_loss(queries, passages, temperature=0.1, reduction="none")
    torch.testing.assert_close(losses[own_only], alone[own_only])


def test_false_negatives_of_other_rows_are_left_out_by_margin() -> None:
    queries, positives, negatives = batch()
    negatives[0] = 2 * queries[0]  # the row's own negative, more similar than anything: stays
    negatives[-1] = queries[1]  # another row's: goes
    expected = info_nce_by_loops(
        queries,
        positives,
        negatives,
        0.1,
        lambda row, owner, similarity, own: owner == row or similarity <= own + 0.15,
    )
    losses = info_nce(queries, positives, negatives, temperature=0.1, false_negative_margin=0.15, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert (losses < info_nce(queries, positives, negatives, temperature=0.1, reduction="none") - 1e-6).any()

    # within the margin nothing changes: no cosine exceeds another by more than 2
    unchanged = info_nce(queries, positives, negatives, temperature=0.1, false_negative_margin=2.0)
    torch.testing.assert_close(unchanged, info_nce(queries, positives, negatives, temperature=0.1))


def test_duplicates_are_left_out_but_never_the_own_positive() -> None:
    queries, positives, _ = batch()
    positives[3] = positives[0]
    duplicates = (positives.unsqueeze(1) == positives).all(dim=-1)  # true on the diagonal, too
    losses = info_nce(queries, positives, temperature=0.1, duplicates=duplicates, reduction="none")
    without = info_nce(queries[:3], positives[[0, 1, 2, 4]], temperature=0.1, reduction="none")
    torch.testing.assert_close(losses[0], without[0])
    assert losses.isfinite().all()
    everything = torch.ones_like(duplicates)
    assert info_nce(queries, positives, temperature=0.1, duplicates=everything).abs() < 1e-12


@pytest.mark.parametrize("margin", [None, 0.1])
def test_both_directions_is_the_mean_of_the_two(margin: float | None) -> None:
    queries, positives, negatives = batch()
    options: dict[str, Any] = {"temperature": 0.1, "false_negative_margin": margin}
    forward = info_nce(queries, positives, negatives, **options)
    backward = info_nce(positives, queries, **options)
    both = info_nce(queries, positives, negatives, both_directions=True, **options)
    torch.testing.assert_close(both, (forward + backward) / 2)

    # rows that see their own passages only are not compared with other rows' queries either
    own_only = torch.ones(ROWS, dtype=torch.bool)
    alone = info_nce(queries, positives, negatives, own_passages_only=own_only, **options)
    both = info_nce(queries, positives, negatives, own_passages_only=own_only, both_directions=True, **options)
    torch.testing.assert_close(both, alone)


def test_both_directions_leave_out_the_queries_of_equal_positives() -> None:
    queries, positives, _ = batch()
    positives[3] = positives[0]
    duplicates = (positives.unsqueeze(1) == positives).all(dim=-1)
    order = torch.tensor([2, 0, 4, 1, 3])  # positives in another order than the queries
    losses = info_nce(
        queries,
        positives[order],
        temperature=0.1,
        targets=order.argsort(),
        duplicates=duplicates[:, order],
        both_directions=True,
        reduction="none",
    )
    forward = info_nce(queries, positives, temperature=0.1, duplicates=duplicates, reduction="none")
    backward = info_nce(positives, queries, temperature=0.1, duplicates=duplicates, reduction="none")
    torch.testing.assert_close(losses, (forward + backward) / 2)


def test_negatives_that_cannot_be_shared_out_need_owners() -> None:
    queries, positives, negatives = batch()
    with pytest.raises(ValueError, match="14 negatives cannot be shared out to 5 positives"):
        info_nce(queries, positives, negatives[:-1], temperature=0.1, false_negative_margin=0.1)


def test_cosines_ignore_lengths_and_dot_products_do_not() -> None:
    queries, positives, negatives = batch()
    scaled = (3 * queries, 0.5 * positives, 7 * negatives)
    torch.testing.assert_close(
        info_nce(*scaled, temperature=0.1), info_nce(queries, positives, negatives, temperature=0.1)
    )
    unit = [F.normalize(tensor, dim=-1) for tensor in (queries, positives, negatives)]
    torch.testing.assert_close(info_nce(*unit, temperature=0.1, similarity="dot"), info_nce(*scaled, temperature=0.1))
    assert not torch.allclose(
        info_nce(*scaled, temperature=0.1, similarity="dot"), info_nce(*unit, temperature=0.1, similarity="dot")
    )


def test_half_precision_and_autocast_cost_no_precision() -> None:
    inputs = [tensor.bfloat16() for tensor in batch()]
    exact = info_nce(*(tensor.double() for tensor in inputs), temperature=0.002)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(*inputs, temperature=0.002)
        own = own_passages_loss(inputs[0], inputs[2].view(ROWS, NEGATIVES, SIZE), temperature=0.002)
    torch.testing.assert_close(loss.double(), exact, atol=1e-3, rtol=1e-4)
    exact = own_passages_loss(inputs[0].double(), inputs[2].double().view(ROWS, NEGATIVES, SIZE), temperature=0.002)
    torch.testing.assert_close(own.double(), exact, atol=1e-3, rtol=1e-4)


def test_simcse_is_info_nce_on_two_views() -> None:
    first, second, _ = batch()
    losses = simcse(first, second, temperature=0.05, reduction="none")
    no_negatives = first.new_zeros(0, SIZE)
    torch.testing.assert_close(losses, info_nce_by_loops(first, second, no_negatives, 0.05))


@pytest.mark.parametrize("divide", [False, True])
def test_repllama_uses_raw_dot_products(divide: bool) -> None:
    queries, positives, negatives = batch()
    grouped = negatives.view(ROWS, NEGATIVES, SIZE)
    scores = torch.stack([grouped[row] @ queries[row] for row in range(ROWS)])
    scores = torch.cat([(queries * positives).sum(1, keepdim=True), scores], dim=1) / (SIZE if divide else 1)
    expected = F.cross_entropy(scores, torch.zeros(ROWS, dtype=torch.long))
    torch.testing.assert_close(repllama(queries, positives, grouped, divide_by_dimension=divide), expected)


def test_kl_distillation() -> None:
    queries, passages = random(ROWS, SIZE, seed=1), random(ROWS, NEGATIVES, SIZE, seed=2)
    teacher = random(ROWS, NEGATIVES, seed=3)
    losses = kl_distillation(
        queries, passages, teacher, temperature=0.2, teacher_temperature=0.5, similarity="dot", reduction="none"
    )
    for row in range(ROWS):
        student = torch.softmax(passages[row] @ queries[row] / 0.2, dim=0)
        target = torch.softmax(teacher[row] / 0.5, dim=0)
        torch.testing.assert_close(losses[row], (target * (target / student).log()).sum())

    # a student that scores like its teacher, up to a constant, has nothing to learn
    scores = (passages @ queries.unsqueeze(-1)).squeeze(-1)
    same = kl_distillation(queries, passages, scores / 0.2 + 7, temperature=0.2, similarity="dot")
    assert same.abs() < 1e-12


def test_margin_mse() -> None:
    queries, passages = random(ROWS, SIZE, seed=1), random(ROWS, 1 + NEGATIVES, SIZE, seed=2)
    scores = (passages @ queries.unsqueeze(-1)).squeeze(-1)
    assert margin_mse(queries, passages, scores + 5) < 1e-20  # only margins count
    teacher = scores.clone()
    teacher[:, 0] += 2  # every margin is wrong by 2
    assert float(margin_mse(queries, passages, teacher)) == pytest.approx(4)
    teacher = scores.clone()
    teacher[0, 1] += 3  # one of all margins is wrong by 3
    assert float(margin_mse(queries, passages, teacher)) == pytest.approx(9 / (ROWS * NEGATIVES))


def rank_by_loops(similarities: list[float], scores: list[float], temperature: float) -> float:
    total = 1.0
    for better, high in zip(similarities, scores, strict=True):
        for worse, low in zip(similarities, scores, strict=True):
            if high > low:
                total += math.exp((worse - better) / temperature)
    return math.log(total)


def complex_similarity(first: Tensor, second: Tensor) -> float:
    """AnglE's value for one pair, with Python's complex numbers."""
    half = len(first) // 2
    z = [complex(first[k], first[half + k]) for k in range(half)]
    w = [complex(second[k], second[half + k]) for k in range(half)]
    lengths = math.sqrt(sum(abs(x) ** 2 for x in z)) * math.sqrt(sum(abs(x) ** 2 for x in w))
    product = sum(x * y.conjugate() for x, y in zip(z, w, strict=True)) / lengths
    return abs(product.real + product.imag)


def test_cosent_and_angle_equal_loops() -> None:
    first, second = random(ROWS, SIZE, seed=1), random(ROWS, SIZE, seed=2)
    scores = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.5])  # two equal ones are not compared
    cosines = F.cosine_similarity(first, second).tolist()
    expected = rank_by_loops(cosines, scores.tolist(), 0.05)
    assert float(cosent(first, second, scores)) == pytest.approx(expected)

    angles = [complex_similarity(one, other) for one, other in zip(first, second, strict=True)]
    torch.testing.assert_close(angle_similarity(first, second), torch.tensor(angles, dtype=torch.float64))
    expected = rank_by_loops(angles, scores.tolist(), 0.3)
    assert float(angle(first, second, scores, temperature=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [cosent, angle])
def test_ranking_losses_read_only_the_order_of_scores(loss: Callable[..., Tensor]) -> None:
    first, second, scores = random(ROWS, SIZE, seed=1), random(ROWS, SIZE, seed=2), random(ROWS, seed=3)
    torch.testing.assert_close(loss(first, second, scores), loss(first, second, scores.exp() * 9 - 4))
    torch.testing.assert_close(loss(first, second, scores), loss(3 * first, 0.2 * second, scores))
    assert float(loss(first, second, torch.ones(ROWS))) == 0
    many = torch.linspace(0, 1, 100)
    alike = torch.ones(100, SIZE)  # all similarities equal: log(1 + number of ordered pairs)
    assert float(loss(alike, alike, many)) == pytest.approx(math.log(1 + 100 * 99 / 2), rel=1e-5)


def test_angle_of_equal_and_of_turned_vectors() -> None:
    vectors = random(ROWS, SIZE, seed=1)
    torch.testing.assert_close(angle_similarity(vectors, 4 * vectors), torch.ones(ROWS, dtype=torch.float64))
    real, imaginary = vectors.chunk(2, dim=-1)
    turned = torch.cat([(real + imaginary), (imaginary - real)], dim=-1)  # times 1 - i: an angle of 45 degrees
    expected = torch.full((ROWS,), math.sqrt(2), dtype=torch.float64)
    torch.testing.assert_close(angle_similarity(vectors, turned), expected)
    with pytest.raises(ValueError, match="`contrastive_loss: angle` needs embeddings of an even size, not 5"):
        angle_similarity(vectors[:, :5], vectors[:, :5])


def test_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    inputs = batch()
    loss = partial(info_nce, temperature=0.1)
    total = matryoshka(loss, *inputs, dims=[SIZE, 3], weights=[1.0, 0.3])
    prefixes = [F.normalize(tensor[:, :3], dim=-1) for tensor in inputs]  # cosines normalize the prefix anew
    expected = loss(*inputs) + 0.3 * info_nce(*prefixes, temperature=0.1, similarity="dot")
    torch.testing.assert_close(total, expected)

    queries, positives, _ = inputs
    by_row = matryoshka(partial(loss, reduction="none"), queries, positives, None, dims=[2, 4])
    torch.testing.assert_close(by_row.mean(), matryoshka(loss, queries, positives, dims=[2, 4]))

    grouped = inputs[2].view(ROWS, NEGATIVES, SIZE)
    prefix = repllama(queries[:, :2], positives[:, :2], grouped[..., :2])
    torch.testing.assert_close(matryoshka(repllama, queries, positives, grouped, dims=[2]), prefix)


def test_matryoshka_refuses_impossible_dims() -> None:
    loss = partial(info_nce, temperature=0.1)
    with pytest.raises(
        ValueError, match=r"`matryoshka_dims` must lie between 1 and the embedding's size 6, not \[7\]"
    ):
        matryoshka(loss, *batch(), dims=[7])
    with pytest.raises(ValueError, match="`matryoshka_weights` must give one weight for each"):
        matryoshka(loss, *batch(), dims=[3, 6], weights=[1.0])


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "info_nce": partial(info_nce, temperature=0.3),
    "info_nce_masked": partial(
        info_nce,
        temperature=0.3,
        similarity="dot",
        both_directions=True,
        false_negative_margin=0.5,
        own_passages_only=torch.tensor([True, False, False]),
    ),
    "simcse": lambda first, second, _: simcse(first, second, temperature=0.3),
    "repllama": lambda queries, positives, negatives: repllama(
        queries, positives, negatives.view(len(queries), NEGATIVES, SIZE), divide_by_dimension=True
    ),
    "kl_distillation": lambda queries, _, negatives: kl_distillation(
        queries, negatives.view(len(queries), NEGATIVES, SIZE), random(3, NEGATIVES, seed=9), temperature=0.3
    ),
    "margin_mse": lambda queries, _, negatives: margin_mse(
        queries, negatives.view(len(queries), NEGATIVES, SIZE), random(3, NEGATIVES, seed=9), similarity="cosine"
    ),
    "cosent": lambda first, second, _: cosent(first, second, torch.tensor([1.0, 0.5, 2.0]), temperature=0.3),
    "angle": lambda first, second, _: angle(first, second, torch.tensor([1.0, 0.5, 2.0]), temperature=0.3),
    "matryoshka": partial(matryoshka, partial(info_nce, temperature=0.3), dims=[2, 5]),
}


@pytest.mark.parametrize("loss", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradients(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    inputs = [tensor.requires_grad_() for tensor in batch(rows=3)]
    assert torch.autograd.gradcheck(loss, inputs)
    assert loss(*inputs).requires_grad
