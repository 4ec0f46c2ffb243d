"""InfoNCE's candidates against closed forms and plain loops: who is left out, tiles, focal weights, mixtures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.train.embed.losses.candidates import log_sum_at_once
from llamafactory_embed.train.embed.losses.info_nce import focal, info_nce
from llamafactory_embed.train.embed.losses.mixing import MIXTURE_ID, random_numbers, with_mixed_negatives
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows


ROWS, NEGATIVES, SIZE, TEMPERATURE = 5, 2, 6, 0.1


def make(**more: Any) -> EmbeddedRows:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(ROWS, 2 + NEGATIVES, SIZE, generator=generator, dtype=torch.float64)
    ids = torch.arange(ROWS * (1 + NEGATIVES)).view(ROWS, 1 + NEGATIVES)
    queries, passages = numbers[:, 0].clone(), numbers[:, 1:].clone()
    return EmbeddedRows(queries.requires_grad_(), passages.requires_grad_(), **{"passage_ids": ids, **more})


def options(**more: Any) -> ContrastiveOptions:
    return ContrastiveOptions(loss_temperature=TEMPERATURE, num_negatives=NEGATIVES, **more)


def by_loops(rows: EmbeddedRows, margin: float, masks_own: bool) -> Tensor:
    """The loss of Qwen3-Embedding, term by term: hard negatives, other queries, other documents for the query and for
    its positive, each masked where it is more similar than the positive by more than the margin."""
    queries, passages = F.normalize(rows.queries, dim=-1), F.normalize(rows.passages, dim=-1)
    losses = []
    for i in range(ROWS):
        own = queries[i] @ passages[i, 0]
        rivals = [(queries[i] @ passages[i, k], not masks_own) for k in range(1, 1 + NEGATIVES)]
        for j in set(range(ROWS)) - {i}:
            rivals.append((queries[i] @ queries[j], False))
            rivals += [(queries[i] @ passages[j, k], False) for k in range(1 + NEGATIVES)]
            rivals += [(passages[i, 0] @ passages[j, k], False) for k in range(1 + NEGATIVES)]
        kept = [own, *(each for each, stays in rivals if stays or each <= own + margin)]
        losses.append(torch.stack(kept).div(TEMPERATURE).logsumexp(dim=0) - own / TEMPERATURE)
    return torch.stack(losses)


@pytest.mark.parametrize("masks_own", [False, True])
def test_four_kinds_of_candidates_and_their_mask(masks_own: bool) -> None:
    rows = make()
    given = options(same_side_negatives=True, false_negative_margin=0.1, mask_own_negatives=masks_own)
    torch.testing.assert_close(info_nce(rows, given), by_loops(rows, 0.1, masks_own))


TILED: dict[str, dict[str, Any]] = {
    "plain": {},
    "both directions": {"both_directions": True, "false_negative_margin": 0.0},
    "all of it": {
        "same_side_negatives": True,
        "false_negative_margin": 0.1,
        "mask_own_negatives": True,
        "guide_model": "guide",
        "hardness_strength": 3.0,
        "hardness_of": "all_negatives",
        "focal_gamma": 0.5,
        "mixed_negatives": 2,
    },
}


@pytest.mark.parametrize("case", TILED)
@pytest.mark.parametrize("tile", [1, 4, 100])
def test_tiles_change_neither_value_nor_gradient(case: str, tile: int) -> None:
    more = {"guide": dataclasses.replace(make(), queries=make().queries.flip(0))} if case == "all of it" else {}
    own_only = torch.tensor([False, True, False, False, False])
    found = []
    for given in (options(**TILED[case]), options(**TILED[case], candidate_tile=tile)):
        rows = make(own_passages_only=own_only, **more)
        loss = info_nce(rows, given)
        gradients = torch.autograd.grad(loss.mean(), [rows.queries, rows.passages])
        found.append((loss, *gradients))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole)


def test_no_matrix_outgrows_its_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_embed.train.embed.losses import candidates

    seen = []

    def watched(anchors: Any, rivals: Any, goals: Any, rules: Any) -> Tensor:
        seen.append((len(anchors.embeddings), len(rivals.embeddings)))
        return log_sum_at_once(anchors, rivals, goals, rules)

    monkeypatch.setattr(candidates, "log_sum_at_once", watched)
    rows = make()
    info_nce(rows, options(candidate_tile=2)).sum().backward()
    assert max(max(sizes) for sizes in seen) == 2
    assert sum(a * c for a, c in seen) == 2 * ROWS * ROWS * (1 + NEGATIVES)  # forward, and again in backward


def test_a_row_without_rivals_costs_and_teaches_nothing() -> None:
    rows = make(own_passages_only=torch.ones(ROWS, dtype=torch.bool))
    alone = dataclasses.replace(rows, passages=rows.passages[:, :1], passage_ids=None)
    for gamma in (0.0, 0.5):
        loss = info_nce(alone, options(focal_gamma=gamma, same_side_negatives=True))
        (gradient,) = torch.autograd.grad(loss.sum(), rows.queries)
        assert loss.abs().max() == gradient.abs().max() == 0


def test_focal_weights() -> None:
    losses = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)
    expected = losses * (1 - (-losses).exp()) ** 2
    torch.testing.assert_close(focal(losses, 2.0), expected)
    torch.testing.assert_close(focal(losses, 0.0), losses)


def test_mixtures_lie_between_two_negatives_of_their_row() -> None:
    rows = make(guide=make())
    mixed = with_mixed_negatives(rows, 3)
    assert mixed.passages.shape == (ROWS, 1 + NEGATIVES + 3, SIZE)
    assert mixed.guide is not None
    torch.testing.assert_close(mixed.guide.passages, mixed.passages)  # the guide's are mixed in the same way
    assert mixed.passage_ids is not None
    assert (mixed.passage_ids[:, -3:] == MIXTURE_ID).all()
    first, second = F.normalize(rows.passages[:, 1:], dim=-1).unbind(dim=1)
    for number in range(3):
        mixture = mixed.passages[:, 1 + NEGATIVES + number]
        torch.testing.assert_close(mixture.norm(dim=-1), torch.ones(ROWS, dtype=torch.float64))
        # of two unit vectors, and of unit length: the angles to both add up to the angle between them
        angles = [((mixture * each).sum(dim=-1)).acos() for each in (first, second)]
        torch.testing.assert_close(sum(angles), (first * second).sum(dim=-1).acos())
    other = with_mixed_negatives(dataclasses.replace(rows, passage_ids=rows.passage_ids + 1), 3)  # type: ignore[operator]
    assert not torch.allclose(other.passages, mixed.passages)


def test_a_rows_mixtures_do_not_depend_on_its_batch() -> None:
    whole = with_mixed_negatives(make(), 2)
    rows = make()
    part = dataclasses.replace(
        rows, queries=rows.queries[2:], passages=rows.passages[2:], passage_ids=rows.passage_ids[2:]  # type: ignore[index]
    )  # fmt: skip
    torch.testing.assert_close(with_mixed_negatives(part, 2).passages, whole.passages[2:])


def test_random_numbers_are_those_of_splitmix64() -> None:
    """The published sequence for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = random_numbers(torch.tensor([1234567]), 3)[0]
    torch.testing.assert_close(found, torch.tensor([(each >> 11) / 2**53 for each in published], dtype=torch.float64))
