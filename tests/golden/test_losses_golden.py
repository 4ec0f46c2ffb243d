"""Losses against the numbers of LLM2Vec, the Diffusion Embedder and tDRO, values and gradients."""

from __future__ import annotations

from typing import Any

import torch

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.train.embed.losses.distillation import kl_distillation
from llamafactory_embed.train.embed.losses.info_nce import find_positives, info_nce
from llamafactory_embed.train.embed.losses.own_passages import own_passages, repllama
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from tests.embedders import make_rows
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare


def leaf(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def assert_golden(actual: torch.Tensor | None, expected: Any, case: GoldenCase) -> None:
    assert actual is not None
    tolerance = case.data["tolerance"]
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), wanted, atol=tolerance["atol"], rtol=tolerance["rtol"])


@golden_cases("llm2vec/losses")
def test_hard_negative_nll(case: GoldenCase) -> None:
    for batch in case.part("hard_negative_nll"):
        for expected in batch["expected"]:
            queries, positives = leaf(batch["q"]), leaf(batch["positive"])
            negatives = None if batch.get("negative") is None else leaf(batch["negative"])
            options = ContrastiveOptions(loss_temperature=1 / expected["scale"])
            # There may be fewer negatives than rows: each passage is a row of its own here.
            passages = positives if negatives is None else torch.cat([positives, negatives])
            everyone = EmbeddedRows(queries, passages.unsqueeze(1))
            loss = find_positives(make_rows(queries, positives), everyone, options).mean()
            loss.backward()
            assert_golden(loss, expected["loss"], case)
            assert_golden(queries.grad, expected["grad_q"], case)
            assert_golden(positives.grad, expected["grad_positive"], case)
            if negatives is not None:
                assert_golden(negatives.grad, expected["grad_negative"], case)


@golden_cases("llm2vec/losses")
def test_repllama(case: GoldenCase) -> None:
    for batch in case.part("repllama"):
        for expected in batch["expected"]:
            queries, positives = leaf(batch["q"]), leaf(batch["positive"])
            negatives = [leaf(values) for values in batch["negatives_list"]]  # K tensors [B, d]
            rows = make_rows(queries, positives, torch.stack(negatives, dim=1).flatten(0, 1))
            loss = repllama(rows, ContrastiveOptions(scale_by_dim=expected["scale_by_dim"])).mean()
            loss.backward()
            assert_golden(loss, expected["loss"], case)
            assert_golden(queries.grad, expected["grad_q"], case)
            assert_golden(positives.grad, expected["grad_positive"], case)
            for negative, gradient in zip(negatives, expected["grad_negatives_list"], strict=True):
                assert_golden(negative.grad, gradient, case)


def reduce_rows(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    assert reduction in ("none", "mean")
    return losses.mean() if reduction == "mean" else losses


@golden_cases("tdro/contrastive")
def test_in_batch_and_own_passages(case: GoldenCase) -> None:
    for batch in case.data["subcases"]:
        for expected in batch["expected"]:
            queries, passages = leaf(batch["q"]), leaf(batch["p"])
            only_own = expected.get("only_hard_negatives")
            rows = EmbeddedRows(
                queries,
                passages.unflatten(0, (-1, batch["passages_per_query"])),
                own_passages_only=None if only_own is None else torch.tensor(only_own),
            )
            loss_function = own_passages if expected["mode"] == "hard_negatives_only" else info_nce
            options = ContrastiveOptions(
                loss_temperature=expected["temperature"], similarity="dot", normalize_embeddings=False
            )
            loss = reduce_rows(loss_function(rows, options), expected["reduction"])
            loss.sum().backward()
            assert_golden(loss, expected["loss"], case)
            assert_golden(queries.grad, expected["grad_q_of_the_sum"], case)
            assert_golden(passages.grad, expected["grad_p_of_the_sum"], case)


@golden_cases("tdro/contrastive")
def test_distillation(case: GoldenCase) -> None:
    batches = [batch for batch in case.data["subcases"] if "distillation" in batch]
    if not batches:
        nothing_to_compare("distillation")
    for batch in batches:
        expected = batch["distillation"]
        queries, passages = leaf(batch["q"]), leaf(batch["p"])
        own = passages.unflatten(0, (-1, batch["passages_per_query"]))
        teacher = torch.tensor(expected["teacher_scores"], dtype=torch.float64).view(own.shape[:2])
        rows = EmbeddedRows(queries, own, scores=teacher)
        options = ContrastiveOptions(
            loss_temperature=expected["temperature"], similarity="dot", normalize_embeddings=False
        )
        losses = info_nce(rows, options) + kl_distillation(rows, options)
        loss = reduce_rows(losses, expected["reduction"])
        loss.sum().backward()
        assert_golden(loss, expected["loss"], case)
        assert_golden(queries.grad, expected["grad_q_of_the_sum"], case)
        assert_golden(passages.grad, expected["grad_p_of_the_sum"], case)
