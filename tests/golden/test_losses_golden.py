"""Losses against the numbers of LLM2Vec, the Diffusion Embedder and tDRO, values and gradients."""

from __future__ import annotations

from typing import Any

import torch

from llamafactory_embed.train.embed.losses import info_nce, kl_distillation, own_passages_loss, repllama
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
            loss = info_nce(queries, positives, negatives, temperature=1 / expected["scale"])
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
            loss = repllama(
                queries,
                positives,
                torch.stack(negatives, dim=1),
                divide_by_dimension=expected["scale_by_dim"],
            )
            loss.backward()
            assert_golden(loss, expected["loss"], case)
            assert_golden(queries.grad, expected["grad_q"], case)
            assert_golden(positives.grad, expected["grad_positive"], case)
            for negative, gradient in zip(negatives, expected["grad_negatives_list"], strict=True):
                assert_golden(negative.grad, gradient, case)


def split_passages(passages: torch.Tensor, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """tDRO's interleaved passages [B * n, d] as positives [B, d] and negatives [B * (n - 1), d]."""
    grouped = passages.unflatten(0, (-1, batch["passages_per_query"]))
    return grouped[:, 0], grouped[:, 1:].flatten(0, 1)


@golden_cases("tdro/contrastive")
def test_in_batch_and_own_passages(case: GoldenCase) -> None:
    for batch in case.data["subcases"]:
        for expected in batch["expected"]:
            queries, passages = leaf(batch["q"]), leaf(batch["p"])
            shared = {"temperature": expected["temperature"], "similarity": "dot", "reduction": expected["reduction"]}
            if expected["mode"] == "hard_negatives_only":
                own = passages.unflatten(0, (-1, batch["passages_per_query"]))
                loss = own_passages_loss(queries, own, **shared)
            else:
                only_own = expected.get("only_hard_negatives")
                loss = info_nce(
                    queries,
                    *split_passages(passages, batch),
                    own_passages_only=None if only_own is None else torch.tensor(only_own),
                    **shared,
                )
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
        shared = {"temperature": expected["temperature"], "similarity": "dot", "reduction": expected["reduction"]}
        contrastive = info_nce(queries, *split_passages(passages, batch), **shared)
        loss = contrastive + kl_distillation(queries, own, teacher, **shared)
        loss.sum().backward()
        assert_golden(loss, expected["loss"], case)
        assert_golden(queries.grad, expected["grad_q_of_the_sum"], case)
        assert_golden(passages.grad, expected["grad_p_of_the_sum"], case)
