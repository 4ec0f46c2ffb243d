"""The loss of a recipe as one function of a batch's embeddings; gathers what other ranks hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from ..gather import gather, rank
from ..losses import angle, cosent, info_nce, kl_distillation, margin_mse, matryoshka, repllama
from .batch import ContrastiveBatch


NEEDS_NEGATIVES = ("repllama", "kl_distillation", "margin_distillation")
NEEDS_SCORES = ("kl_distillation", "margin_distillation", "cosent", "angle")


class ContrastiveObjective:
    """Call it with embeddings [2B + B*K, d] in the order of `ContrastiveBatch`."""

    def __init__(self, options: ContrastiveOptions) -> None:
        self.options = options

    def __call__(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        self._check(batch)
        queries, positives, negatives = batch.split(embeddings.float())
        dims = self.options.matryoshka_dims

        def loss(queries: Tensor, positives: Tensor, negatives: Tensor | None) -> Tensor:
            return self._loss(queries, positives, negatives, batch)

        if dims is None:
            return loss(queries, positives, negatives)
        return matryoshka(loss, queries, positives, negatives, dims=dims)

    def _loss(self, queries: Tensor, positives: Tensor, negatives: Tensor | None, batch: ContrastiveBatch) -> Tensor:
        options = self.options
        match options.contrastive_loss:
            case "info_nce":
                return self._info_nce(queries, positives, negatives, batch)
            case "repllama":
                assert negatives is not None
                return repllama(queries, positives, negatives, divide_by_dimension=options.scale_by_dim)
            case "kl_distillation":
                return kl_distillation(
                    queries,
                    _own_passages(positives, negatives),
                    _scores(batch, queries),
                    temperature=options.loss_temperature,
                    teacher_temperature=options.teacher_temperature,
                    similarity=options.similarity,
                )
            case "margin_distillation":
                return margin_mse(
                    queries,
                    _own_passages(positives, negatives),
                    _scores(batch, queries),
                    similarity=options.similarity,
                )
            case "cosent" | "angle":
                rank_pairs = cosent if options.contrastive_loss == "cosent" else angle
                scores = gather(_scores(batch, queries)[:, 0])
                return rank_pairs(gather(queries), gather(positives), scores, temperature=options.loss_temperature)

    def _info_nce(
        self, queries: Tensor, positives: Tensor, negatives: Tensor | None, batch: ContrastiveBatch
    ) -> Tensor:
        options = self.options
        own = torch.arange(batch.rows, device=queries.device)  # [B]
        flat_negatives = None if negatives is None else negatives.flatten(0, 1)  # [B * K, d]
        positive_ids, negative_ids = batch.document_ids.to(queries.device).split(
            [batch.rows, batch.rows * batch.negatives_per_row]
        )
        own_ids = positive_ids
        all_queries = queries
        if options.cross_device_negatives:
            own = own + rank() * batch.rows
            all_queries = gather(queries) if options.both_directions else queries
            positives, positive_ids, negative_ids = gather(positives), gather(positive_ids), gather(negative_ids)
            flat_negatives = None if flat_negatives is None else gather(flat_negatives)

        document_ids = torch.cat([positive_ids, negative_ids])  # [P + N]
        own_passages_only = batch.own_passages_only.to(queries.device)
        return info_nce(
            queries,
            positives,
            flat_negatives,
            temperature=options.loss_temperature,
            similarity=options.similarity,
            targets=own,
            own_passages_only=own_passages_only if own_passages_only.any() else None,
            duplicates=document_ids == own_ids.unsqueeze(1),  # [B, P + N]
            false_negative_margin=options.false_negative_margin,
            both_directions=options.both_directions,
            all_queries=all_queries if options.both_directions else None,
        )

    def _check(self, batch: ContrastiveBatch) -> None:
        loss = self.options.contrastive_loss
        if loss in NEEDS_NEGATIVES and batch.negatives_per_row == 0:
            raise ValueError(
                f"`contrastive_loss: {loss}` compares a query's positive with its own negatives, but the rows have "
                "none: set `num_negatives` to at least 1 and use data with negatives."
            )
        if loss in NEEDS_SCORES and batch.scores is None:
            raise ValueError(f"`contrastive_loss: {loss}` needs data with a `score` column; these rows have none.")


def _own_passages(positives: Tensor, negatives: Tensor | None) -> Tensor:
    """[B, d] and [B, K, d] → [B, 1 + K, d]."""
    assert negatives is not None
    return torch.cat([positives.unsqueeze(1), negatives], dim=1)


def _scores(batch: ContrastiveBatch, like: Tensor) -> Tensor:
    assert batch.scores is not None
    return batch.scores.to(like.device)
