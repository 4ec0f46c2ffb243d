"""The losses that sentence-transformers has too, values and gradients against its own on the same embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.train.embed.losses import FUNCTIONS
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from llamafactory_embed.train.embed.losses.vectors import spread_out


ROWS, NEGATIVES, SIZE = 6, 2, 5


def embeddings(count: int = 2 + NEGATIVES, seed: int = 0) -> list[Tensor]:
    """Columns [B, d] as they come from a model: queries, positives, negatives."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64) for _ in range(count)]


def as_rows(columns: list[Tensor], **more: Any) -> EmbeddedRows:
    return EmbeddedRows(columns[0], torch.stack(columns[1:], dim=1), **more)


def assert_same(ours: Tensor, columns: list[Tensor], expected: Tensor, their_columns: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected)
    found, wanted = torch.autograd.grad(ours, columns), torch.autograd.grad(expected, their_columns)
    for gradient, their_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, their_gradient)
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-4


def leaves(columns: list[Tensor]) -> list[Tensor]:
    return [each.clone().requires_grad_() for each in columns]


CONTRASTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same side": (
        {"same_side_negatives": True},
        {"directions": ("query_to_doc", "query_to_query", "doc_to_doc")},
    ),
    "both directions": (
        {"both_directions": True},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    ),
    **{
        f"hardness of {of}": (
            {"hardness_strength": 5.0, "hardness_of": of},
            {"hardness_mode": of, "hardness_strength": 5.0},
        )
        for of in ("hard_negatives", "in_batch_negatives", "all_negatives")
    },
}


@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize("case", CONTRASTS)
def test_multiple_negatives_ranking(case: str, tile: int | None) -> None:
    own, their_own = CONTRASTS[case]
    columns, their_columns = leaves(embeddings()), leaves(embeddings())
    options = ContrastiveOptions(loss_temperature=0.1, num_negatives=NEGATIVES, candidate_tile=tile, **own)
    ours = FUNCTIONS["info_nce"](as_rows(columns), options).mean()
    loss = theirs.MultipleNegativesRankingLoss(None, scale=10.0, **their_own)  # type: ignore[arg-type]
    assert_same(ours, columns, loss.compute_loss_from_embeddings(their_columns, None), their_columns)


class _FixedModel(torch.nn.Module):
    """A model whose embeddings are given: GISTEmbed's loss asks its models by itself."""

    def __init__(self, columns: list[Tensor]) -> None:
        super().__init__()
        self.tokenizer = _tokenizer()
        self.max_seq_length = 10
        self.columns = columns

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "sentence_embedding": self.columns[features["column"]]}


def _tokenizer() -> Any:
    from tests.tiny_models import tiny_tokenizer

    return tiny_tokenizer()


@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize(("kind", "margin"), [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3)])
def test_gist(kind: str, margin: float, negatives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers.sentence_transformer.losses import gist_embed

    columns, their_columns = leaves(embeddings(2 + negatives)), leaves(embeddings(2 + negatives))
    guide = embeddings(2 + negatives, seed=7)
    guide[1] = guide[1] * 0.3 + guide[0]  # the guide knows the positives
    monkeypatch.setattr(
        gist_embed, "embed_columns", lambda model, features: [model(each)["sentence_embedding"] for each in features]
    )
    loss = theirs.GISTEmbedLoss(
        _FixedModel(their_columns),  # type: ignore[arg-type]
        _FixedModel(guide),  # type: ignore[arg-type]
        temperature=0.1,
        margin_strategy=kind,  # type: ignore[arg-type]
        margin=margin,
        contrast_anchors=not negatives,  # theirs compares positives with positives only, ours with all documents
        contrast_positives=not negatives,
    )
    expected = loss([{"column": column} for column in range(2 + negatives)], torch.zeros(0))
    options = ContrastiveOptions(
        loss_temperature=0.1,
        guide_model="guide",
        guide_margin=margin,
        guide_margin_kind=kind,  # type: ignore[arg-type]
        mask_own_negatives=True,
        same_side_negatives=not negatives,
    )
    ours = FUNCTIONS["info_nce"](as_rows(columns, guide=as_rows(guide)), options).mean()
    assert_same(ours, columns, expected, their_columns)


SCORES = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "loss", "per_row"),
    [
        ("mse", lambda: theirs.CosineSimilarityLoss(None), True),  # type: ignore[arg-type]
        ("pairs", lambda: theirs.ContrastiveLoss(None, margin=0.7), True),  # type: ignore[arg-type]
        ("online_pairs", lambda: theirs.OnlineContrastiveLoss(None, margin=0.7), False),  # type: ignore[arg-type]
    ],
)
def test_pairs(name: str, loss: Any, per_row: bool) -> None:
    dtype = torch.float32 if name == "mse" else torch.float64  # theirs makes the scores float32
    columns, their_columns = (leaves([each.to(dtype) for each in embeddings(2)]) for _ in range(2))
    scores = torch.tensor(SCORES, dtype=dtype)
    rows = as_rows(columns, scores=scores.unsqueeze(1))
    margin = {} if name == "mse" else {"pair_margin": 0.7}
    ours = FUNCTIONS[name](rows, ContrastiveOptions(contrastive_loss=name, **margin))  # type: ignore[arg-type]
    assert ours.shape == ((ROWS,) if per_row else ())
    expected = loss().compute_loss_from_embeddings(their_columns, scores)
    assert_same(ours.mean(), columns, expected, their_columns)


def test_triplet() -> None:
    columns, their_columns = leaves(embeddings(3)), leaves(embeddings(3))
    options = ContrastiveOptions(contrastive_loss="triplet", pair_margin=0.4)
    loss = theirs.TripletLoss(
        None,  # type: ignore[arg-type]
        theirs.TripletDistanceMetric.COSINE,
        triplet_margin=0.4,
    )
    expected = loss.compute_loss_from_embeddings(their_columns, torch.zeros(0))
    assert_same(FUNCTIONS["triplet"](as_rows(columns), options).mean(), columns, expected, their_columns)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_vector_distillation(distance: str) -> None:
    columns, their_columns, teacher = leaves(embeddings(2)), leaves(embeddings(2)), embeddings(2, seed=3)
    rows = as_rows(columns, teacher_vectors=torch.stack(teacher, dim=1))
    options = ContrastiveOptions(contrastive_loss="vector_distillation", vector_distance=distance)  # type: ignore[arg-type]
    loss = theirs.EmbedDistillLoss(None, distance)  # type: ignore[arg-type]
    expected = loss.compute_loss_from_embeddings(their_columns, teacher)
    assert_same(FUNCTIONS["vector_distillation"](rows, options).mean(), columns, expected, their_columns)


def test_spread_out() -> None:
    """Theirs stops at 1 / d, the value for embeddings that are spread evenly; jina-v5's and ours do not."""
    columns, their_columns = (leaves([each * 0.5 + 1 for each in embeddings(2)]) for _ in range(2))
    loss = theirs.GlobalOrthogonalRegularizationLoss(None, mean_weight=None, aggregation="sum")  # type: ignore[arg-type]
    (expected,) = loss.compute_loss_from_embeddings(their_columns).values()
    assert_same(spread_out(as_rows(columns)).mean(), columns, expected + 2 / SIZE, their_columns)
