"""Options that say how a query is compared with documents."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from llamafactory_embed.hparams.contrastive import ComparisonOptions, ContrastiveOptions
from llamafactory_embed.hparams.tdro import TdroOptions


@pytest.mark.parametrize("options", [ContrastiveOptions, TdroOptions])
@pytest.mark.parametrize("more", [{}, {"normalize_embeddings": True}], ids=["default", "said"])
def test_what_is_trained_by_inner_products_is_not_served_by_cosine(
    options: type[ComparisonOptions], more: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"`similarity: dot` trains inner products.* `normalize_embeddings: false`"):
        options(similarity="dot", **more)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"pooling": "mask", "skip_instruction": True}, "`skip_instruction` leaves tokens of the text out"),
        ({"mask_tokens": 2}, "`mask_tokens` belongs to `pooling: mask`, not to mean"),
        ({"mask_token": "eos", "pooling": "last"}, "`mask_token` belongs to `pooling: mask`, not to last"),
    ],
)
def test_mask_tokens_are_for_a_pooling_that_reads_them(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TdroOptions(**given)


@pytest.mark.parametrize("options", [ContrastiveOptions, TdroOptions])
@pytest.mark.parametrize(("similarity", "normalize"), [("dot", False), ("cosine", True), ("cosine", False)])
def test_what_agrees_is_accepted(
    options: type[ComparisonOptions], similarity: Literal["cosine", "dot"], normalize: bool
) -> None:
    made = options(similarity=similarity, normalize_embeddings=normalize)
    assert (made.similarity, made.normalize_embeddings) == (similarity, normalize)
