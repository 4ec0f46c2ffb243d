"""Losses against closed forms, plain loops and each other; gradients by finite differences in float64."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.hparams.contrastive import LOSSES, ContrastiveOptions, LossFacts
from llamafactory_embed.train.embed.losses import FUNCTIONS
from llamafactory_embed.train.embed.losses import rows as rows_module
from llamafactory_embed.train.embed.losses import vectors as vectors_module
from llamafactory_embed.train.embed.losses.distillation import kl_distillation, margin_distillation
from llamafactory_embed.train.embed.losses.info_nce import contrast, info_nce
from llamafactory_embed.train.embed.losses.own_passages import own_passages, repllama
from llamafactory_embed.train.embed.losses.ranking import angle, angle_similarity, cosent
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from llamafactory_embed.train.embed.losses.vectors import vector_distances
from tests.embedders import make_rows


REPOSITORY = Path(__file__).parents[4]
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


def options(temperature: float = 0.1, **more: Any) -> ContrastiveOptions:
    normalize = more.get("similarity") != "dot"
    return ContrastiveOptions(loss_temperature=temperature, normalize_embeddings=normalize, **more)


def in_batch(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    passage_ids: Tensor | None = None,
    own_passages_only: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """InfoNCE of each row, by default at temperature 0.1."""
    rows = make_rows(queries, positives, negatives, passage_ids=passage_ids, own_passages_only=own_passages_only)
    return info_nce(rows, options(**more))


def random_ids(rows: int, seed: int) -> Tensor:
    """Numbers for the passages of each row, several of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (rows, 1 + NEGATIVES), generator=generator)


def test_every_loss_of_the_recipe_has_its_facts_and_its_function() -> None:
    names = list(get_args(get_type_hints(ContrastiveOptions)["contrastive_loss"]))
    assert list(LOSSES) == list(FUNCTIONS) == names


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_loops(temperature: float) -> None:
    inputs = batch()
    torch.testing.assert_close(in_batch(*inputs, temperature=temperature), info_nce_by_loops(*inputs, temperature))


def test_uniform_similarities_cost_the_logarithm_of_the_candidates() -> None:
    ones = torch.ones(ROWS, SIZE, dtype=torch.float64)
    negatives = torch.ones(ROWS * NEGATIVES, SIZE, dtype=torch.float64)

    def expect(losses: Tensor, candidates: int) -> None:
        torch.testing.assert_close(losses, torch.full_like(losses, math.log(candidates)))

    expect(in_batch(ones, ones, negatives, temperature=0.02), ROWS * (1 + NEGATIVES))
    expect(in_batch(ones, ones, temperature=0.02, both_directions=True), ROWS)
    expect(repllama(make_rows(ones, ones, negatives), options()), 1 + NEGATIVES)


def test_two_candidates_cost_the_softplus_of_their_margin() -> None:
    query, positive, negative = random(1, SIZE, seed=1), random(1, SIZE, seed=2), random(1, SIZE, seed=3)
    margin = float((query @ negative.T - query @ positive.T) / 0.7)
    loss = in_batch(query, positive, negative, temperature=0.7, similarity="dot")
    assert float(loss) == pytest.approx(math.log1p(math.exp(margin)))


def test_a_single_candidate_costs_nothing_and_teaches_nothing() -> None:
    query, positive, _ = batch(rows=1)
    loss = in_batch(query.requires_grad_(), positive, temperature=0.05)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, query)[0].abs().max() == 0


def test_info_nce_does_not_depend_on_the_order_of_rows_and_of_negatives() -> None:
    queries, positives, negatives = batch()
    own_only = torch.tensor([True, False, True, False, False])
    ids = random_ids(ROWS, seed=7)
    losses = in_batch(
        queries, positives, negatives, passage_ids=ids, own_passages_only=own_only, false_negative_margin=0.1
    )

    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.randperm(ROWS, generator=generator), torch.randperm(NEGATIVES, generator=generator)
    shuffled = in_batch(
        queries[rows],
        positives[rows],
        negatives.view(ROWS, NEGATIVES, SIZE)[rows][:, columns].flatten(0, 1),
        passage_ids=torch.cat([ids[rows, :1], ids[rows][:, 1 + columns]], dim=1),
        own_passages_only=own_only[rows],
        false_negative_margin=0.1,
    )
    torch.testing.assert_close(shuffled, losses[rows])
    assert not torch.allclose(losses, in_batch(queries, positives, negatives), atol=1e-3)


def test_a_rank_with_gathered_candidates_computes_its_rows_of_the_joined_batch() -> None:
    everyone = make_rows(
        *batch(rows=6),
        passage_ids=random_ids(6, seed=8),
        own_passages_only=torch.tensor([False, True, False, False, True, False]),
    )
    settings = options(false_negative_margin=0.05, both_directions=True)
    joined = info_nce(everyone, settings)
    for first in (0, 3):
        part = slice(first, first + 3)
        fields = {name: value[part] for name, value in vars(everyone).items() if isinstance(value, Tensor)}
        own = EmbeddedRows(**fields, first_row=first)
        torch.testing.assert_close(contrast(own, everyone, settings), joined[part])


def test_own_passages_only() -> None:
    queries, positives, negatives = batch()
    own_only = torch.tensor([True, False, False, True, True])
    losses = in_batch(queries, positives, negatives, own_passages_only=own_only)
    expected = info_nce_by_loops(
        queries, positives, negatives, 0.1, lambda row, owner, similarity, own: owner == row or not own_only[row]
    )
    torch.testing.assert_close(losses, expected)

    alone = own_passages(make_rows(queries, positives, negatives), options())
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
    losses = in_batch(queries, positives, negatives, false_negative_margin=0.15)
    torch.testing.assert_close(losses, expected)
    assert (losses < in_batch(queries, positives, negatives) - 1e-6).any()

    # within the margin nothing changes: no cosine exceeds another by more than 2
    unchanged = in_batch(queries, positives, negatives, false_negative_margin=2.0)
    torch.testing.assert_close(unchanged, in_batch(queries, positives, negatives))


def test_duplicates_are_left_out_but_never_the_own_positive() -> None:
    queries, positives, _ = batch()
    positives[3] = positives[0]
    ids = torch.tensor([[10], [11], [12], [10], [14]])
    losses = in_batch(queries, positives, passage_ids=ids)
    without = in_batch(queries[:3], positives[:3])
    fewer = info_nce_by_loops(queries[:3], positives[[0, 1, 2, 4]], queries.new_zeros(0, SIZE), 0.1)
    torch.testing.assert_close(losses[0], fewer[0])
    assert losses[0] > without[0]
    assert losses.isfinite().all()
    everything = torch.ones(ROWS, 1, dtype=torch.long)
    assert in_batch(queries, positives, passage_ids=everything).abs().max() < 1e-12


@pytest.mark.parametrize("margin", [None, 0.1])
def test_both_directions_is_the_mean_of_the_two(margin: float | None) -> None:
    queries, positives, negatives = batch()
    forward = in_batch(queries, positives, negatives, false_negative_margin=margin)
    backward = in_batch(positives, queries, false_negative_margin=margin)
    both = in_batch(queries, positives, negatives, both_directions=True, false_negative_margin=margin)
    torch.testing.assert_close(both, (forward + backward) / 2)

    # rows that see their own passages only are not compared with other rows' queries either
    own_only = torch.tensor([True, True, False, True, True])
    alone = in_batch(queries, positives, negatives, own_passages_only=own_only, false_negative_margin=margin)
    both = in_batch(
        queries, positives, negatives, own_passages_only=own_only, both_directions=True, false_negative_margin=margin
    )
    torch.testing.assert_close(both[own_only], alone[own_only])
    torch.testing.assert_close(both[2], (forward[2] + backward[2]) / 2)


def test_both_directions_leave_out_the_queries_of_equal_positives() -> None:
    queries, positives, _ = batch()
    positives[3] = positives[0]
    ids = torch.tensor([[10], [11], [12], [10], [14]])
    losses = in_batch(queries, positives, passage_ids=ids, both_directions=True)
    forward = in_batch(queries, positives, passage_ids=ids)
    backward = in_batch(positives, queries, passage_ids=ids)
    torch.testing.assert_close(losses, (forward + backward) / 2)
    assert not torch.allclose(backward, in_batch(positives, queries), atol=1e-3)


def test_cosines_ignore_lengths_and_dot_products_do_not() -> None:
    queries, positives, negatives = batch()
    scaled = (3 * queries, 0.5 * positives, 7 * negatives)
    torch.testing.assert_close(in_batch(*scaled), in_batch(queries, positives, negatives))
    unit = [F.normalize(tensor, dim=-1) for tensor in (queries, positives, negatives)]
    torch.testing.assert_close(in_batch(*unit, similarity="dot"), in_batch(*scaled))
    assert not torch.allclose(in_batch(*scaled, similarity="dot"), in_batch(*unit, similarity="dot"))


def test_half_precision_and_autocast_cost_no_precision() -> None:
    inputs = [tensor.bfloat16() for tensor in batch()]
    exact = [tensor.double() for tensor in inputs]
    for loss in (info_nce, own_passages):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = loss(make_rows(*inputs), options(0.002))
        expected = loss(make_rows(*exact), options(0.002))
        torch.testing.assert_close(losses.double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("divide", [False, True])
def test_repllama_uses_raw_dot_products(divide: bool) -> None:
    queries, positives, negatives = batch()
    grouped = negatives.view(ROWS, NEGATIVES, SIZE)
    scores = torch.stack([grouped[row] @ queries[row] for row in range(ROWS)])
    scores = torch.cat([(queries * positives).sum(1, keepdim=True), scores], dim=1) / (SIZE if divide else 1)
    expected = F.cross_entropy(scores, torch.zeros(ROWS, dtype=torch.long), reduction="none")
    losses = repllama(make_rows(queries, positives, negatives), options(scale_by_dim=divide))
    torch.testing.assert_close(losses, expected)


def test_kl_distillation() -> None:
    queries, passages = random(ROWS, SIZE, seed=1), random(ROWS, NEGATIVES, SIZE, seed=2)
    teacher = random(ROWS, NEGATIVES, seed=3)
    settings = options(0.2, teacher_temperature=0.5, similarity="dot")
    losses = kl_distillation(EmbeddedRows(queries, passages, scores=teacher), settings)
    for row in range(ROWS):
        student = torch.softmax(passages[row] @ queries[row] / 0.2, dim=0)
        target = torch.softmax(teacher[row] / 0.5, dim=0)
        torch.testing.assert_close(losses[row], (target * (target / student).log()).sum())

    # a student that scores like its teacher, up to a constant, has nothing to learn
    scores = (passages @ queries.unsqueeze(-1)).squeeze(-1)
    same = kl_distillation(EmbeddedRows(queries, passages, scores=scores / 0.2 + 7), options(0.2, similarity="dot"))
    assert same.abs().max() < 1e-12


def test_margin_distillation() -> None:
    queries, passages = random(ROWS, SIZE, seed=1), random(ROWS, 1 + NEGATIVES, SIZE, seed=2)
    scores = (passages @ queries.unsqueeze(-1)).squeeze(-1)

    def loss(teacher: Tensor) -> float:
        rows = EmbeddedRows(queries, passages, scores=teacher)
        return float(margin_distillation(rows, options(similarity="dot")).mean())

    assert loss(scores + 5) < 1e-20  # only margins count
    teacher = scores.clone()
    teacher[:, 0] += 2  # every margin is wrong by 2
    assert loss(teacher) == pytest.approx(4)
    teacher = scores.clone()
    teacher[0, 1] += 3  # one of all margins is wrong by 3
    assert loss(teacher) == pytest.approx(9 / (ROWS * NEGATIVES))


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


def pairs(first: Tensor, second: Tensor, scores: Tensor) -> EmbeddedRows:
    return make_rows(first, second, scores=scores.unsqueeze(1))


def test_cosent_and_angle_equal_loops() -> None:
    first, second = random(ROWS, SIZE, seed=1), random(ROWS, SIZE, seed=2)
    scores = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.5])  # two equal ones are not compared
    cosines = F.cosine_similarity(first, second).tolist()
    expected = rank_by_loops(cosines, scores.tolist(), 0.05)
    assert float(cosent(pairs(first, second, scores), options(0.05))) == pytest.approx(expected)

    angles = [complex_similarity(one, other) for one, other in zip(first, second, strict=True)]
    torch.testing.assert_close(angle_similarity(first, second), torch.tensor(angles, dtype=torch.float64))
    expected = rank_by_loops(angles, scores.tolist(), 0.3)
    assert float(angle(pairs(first, second, scores), options(0.3))) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [cosent, angle])
def test_ranking_losses_read_only_the_order_of_scores(
    loss: Callable[[EmbeddedRows, ContrastiveOptions], Tensor],
) -> None:
    def value(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
        return loss(pairs(first, second, scores), options(0.05))

    first, second, scores = random(ROWS, SIZE, seed=1), random(ROWS, SIZE, seed=2), random(ROWS, seed=3)
    torch.testing.assert_close(value(first, second, scores), value(first, second, scores.exp() * 9 - 4))
    torch.testing.assert_close(value(first, second, scores), value(3 * first, 0.2 * second, scores))
    assert float(value(first, second, torch.ones(ROWS))) == 0
    many = torch.linspace(0, 1, 100)
    alike = torch.ones(100, SIZE)  # all similarities equal: log(1 + number of ordered pairs)
    assert float(value(alike, alike, many)) == pytest.approx(math.log(1 + 100 * 99 / 2), rel=1e-5)


def test_angle_of_equal_and_of_turned_vectors() -> None:
    vectors = random(ROWS, SIZE, seed=1)
    torch.testing.assert_close(angle_similarity(vectors, 4 * vectors), torch.ones(ROWS, dtype=torch.float64))
    real, imaginary = vectors.chunk(2, dim=-1)
    turned = torch.cat([(real + imaginary), (imaginary - real)], dim=-1)  # times 1 - i: an angle of 45 degrees
    expected = torch.full((ROWS,), math.sqrt(2), dtype=torch.float64)
    torch.testing.assert_close(angle_similarity(vectors, turned), expected)
    with pytest.raises(ValueError, match="`contrastive_loss: angle` needs embeddings of an even size, not 5"):
        angle_similarity(vectors[:, :5], vectors[:, :5])


def test_the_loss_that_the_page_adds_is_one() -> None:
    page = (REPOSITORY / "docs" / "contrastive.md").read_text(encoding="utf-8")
    added = page.split("### Adding a loss")[1]
    names: dict[str, Any] = dict(vars(rows_module)) | {
        "ContrastiveOptions": ContrastiveOptions,
        "LossFacts": LossFacts,
    }
    exec(textwrap.dedent(re.search(r"```python\n(.*?)```", added, re.DOTALL)[1]), names)
    function, facts = (eval("{" + line + "}", names)["hinge"] for line in re.findall(r"`(\"hinge\": .*?)`", added))
    queries, positives, negatives = batch()
    losses = function(make_rows(queries, positives, negatives), options())
    for row, loss in enumerate(losses):
        own = F.cosine_similarity(queries[row], positives[row], dim=0)
        others = F.cosine_similarity(queries[row], negatives[row * NEGATIVES : (row + 1) * NEGATIVES])
        torch.testing.assert_close(loss, (others - own + 0.1).clamp(min=0).mean())
    assert facts == LossFacts(needs_negatives=True)
    assert losses.max() > 0


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "info_nce": partial(in_batch, temperature=0.3),
    "info_nce_masked": partial(
        in_batch,
        temperature=0.3,
        similarity="dot",
        both_directions=True,
        false_negative_margin=0.5,
        own_passages_only=torch.tensor([True, False, False]),
        passage_ids=random_ids(3, seed=4),
    ),
    "own_passages": lambda *inputs: own_passages(make_rows(*inputs), options(0.3)),
    "repllama": lambda *inputs: repllama(make_rows(*inputs), options(scale_by_dim=True)),
    "kl_distillation": lambda *inputs: kl_distillation(
        make_rows(*inputs, scores=random(3, 1 + NEGATIVES, seed=9)), options(0.3)
    ),
    "margin_distillation": lambda *inputs: margin_distillation(
        make_rows(*inputs, scores=random(3, 1 + NEGATIVES, seed=9)), options()
    ),
    "cosent": lambda first, second, _: cosent(pairs(first, second, torch.tensor([1.0, 0.5, 2.0])), options(0.3)),
    "angle": lambda first, second, _: angle(pairs(first, second, torch.tensor([1.0, 0.5, 2.0])), options(0.3)),
}


@pytest.mark.parametrize("loss", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradients(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    inputs = [tensor.requires_grad_() for tensor in batch(rows=3)]
    assert torch.autograd.gradcheck(loss, inputs)
    assert loss(*inputs).requires_grad


def test_a_teacher_of_another_size_teaches_who_is_near_to_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, for the texts of all ranks; and nothing is to be learnt from oneself, turned and scaled."""
    texts, vectors = random(4, 2, SIZE), random(4, 2, 3, seed=1)
    found = vector_distances(texts, vectors, "similarities")
    pairs = list(zip(texts.flatten(0, 1), vectors.flatten(0, 1), strict=True))
    expected = [
        sum((F.cosine_similarity(a, c, dim=0) - F.cosine_similarity(b, d, dim=0)) ** 2 for c, d in pairs) / 7
        for a, b in pairs
    ]
    torch.testing.assert_close(found, torch.stack(expected).view(4, 2))

    turned = 3 * vectors @ torch.linalg.qr(random(SIZE, 3, seed=2))[0].T
    torch.testing.assert_close(vector_distances(turned, vectors, "similarities"), torch.zeros(4, 2).double())

    everyone = {SIZE: texts.flatten(0, 1), 3: vectors.flatten(0, 1)}  # the first of two ranks sees the other's texts
    monkeypatch.setattr(vectors_module, "gather", lambda own: everyone[own.shape[-1]])
    torch.testing.assert_close(vector_distances(texts[:2], vectors[:2], "similarities"), found[:2])
