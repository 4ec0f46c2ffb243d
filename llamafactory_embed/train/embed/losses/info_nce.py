"""InfoNCE: find the query's positive among all positives and negatives of the batch.

van den Oord et al. 2018; with in-batch and hard negatives as in Karpukhin et al. 2020 (DPR), LLM2Vec and tDRO. With
two views of a text as query and positive it is SimCSE (Gao et al. 2021). Qwen3-Embedding adds queries and documents of
other rows (`same_side_negatives`), GISTEmbed a guide, EmbeddingGemma hardness, KaLM-V2 focal weights and mixing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....hparams.contrastive import ComparisonOptions, ContrastiveOptions
from .candidates import Anchors, Goals, Rivals, Rules, log_sum, unit
from .mixing import with_mixed_negatives
from .rows import AnyRows, EmbeddedRows, Similarity, texts_for_similarity


# 1 - p of a row that has found its positive, whose power below 1 has no gradient at 0.
SMALLEST_DOUBT = 1e-12


def info_nce(rows: AnyRows, options: ContrastiveOptions) -> Tensor:
    """Cross entropy of softmax(similarity / temperature) against each query's positive, [B]; candidates are the
    passages of all rows, with `cross_device_negatives` those of other ranks too."""
    if isinstance(rows, EmbeddedRows):
        rows = with_mixed_negatives(rows, options.mixed_negatives)
    everyone = rows.of_all_ranks() if options.cross_device_negatives else rows
    return focal(contrast(rows, everyone, options), options.focal_gamma)


def contrast(rows: AnyRows, everyone: AnyRows, options: ContrastiveOptions) -> Tensor:
    """The loss of `rows` [B] among `everyone`, who include them.

    With `both_directions` it is the mean of finding each query's positive and of finding each positive's query; rows
    that see only their own passages also ignore other rows' queries.
    """
    similarity, rules = options.similarity, Rules.of(options)
    goals = goals_of(rows, everyone, similarity)
    kinds = [(queries_of(rows, similarity), passages_of(everyone, similarity))]
    if options.same_side_negatives:
        kinds.append((queries_of(rows, similarity), other_queries(everyone, similarity)))
        kinds.append((positives_of(rows, similarity), other_passages(everyone, similarity)))
    losses = lose(kinds, goals, rules)
    if not options.both_directions:
        return losses

    back = lose([(positives_of(rows, similarity), other_queries(everyone, similarity))], goals, rules)
    both = (losses + back) / 2
    return both if rows.own_passages_only is None else torch.where(rows.own_passages_only, losses, both)


def find_positives(rows: AnyRows, everyone: AnyRows, options: ComparisonOptions) -> Tensor:
    """Cross entropy of finding each query's positive among the passages of `everyone`, who include `rows` [B], [B]."""
    kinds = [(queries_of(rows, options.similarity), passages_of(everyone, options.similarity))]
    return lose(kinds, goals_of(rows, everyone, options.similarity), Rules(options.loss_temperature))


def lose(kinds: list[tuple[Anchors, Rivals]], goals: Goals, rules: Rules) -> Tensor:
    """Cross entropy of the text to find among it and all candidates of these kinds, [B]."""
    target = goals.similarities / rules.temperature
    rivals = torch.stack([log_sum(anchors, candidates, goals, rules) for anchors, candidates in kinds])
    return torch.logaddexp(rivals.logsumexp(dim=0), target) - target


def focal(losses: Tensor, gamma: float) -> Tensor:
    """Losses times (1 - p)^gamma, where p = exp(-loss) is the probability of the positive (Lin et al. 2017)."""
    if not gamma:
        return losses
    return losses * (-torch.expm1(-losses)).clamp_min(SMALLEST_DOUBT) ** gamma


# ------------------------------------------- who is compared with whom -------------------------------------------


def goals_of(rows: AnyRows, everyone: AnyRows, similarity: Similarity) -> Goals:
    """Each row's query has to find the row's positive, or the positive the query."""
    places = torch.arange(len(rows.queries), device=rows.queries.device) + rows.first_row - everyone.first_row
    guide = rows.guide
    return Goals(
        rows=places,
        similarities=rows.own_similarities(similarity, most=1).squeeze(1),
        ids=None if rows.passage_ids is None else rows.passage_ids[:, 0],
        own_only=rows.own_passages_only,
        guide_similarities=None if guide is None else guide.own_similarities("cosine", most=1).squeeze(1),
    )


def queries_of(rows: AnyRows, similarity: Similarity) -> Anchors:
    """The rows' queries as anchors."""
    guide = None if rows.guide is None else unit(rows.guide.queries)
    return Anchors(texts_for_similarity(rows.queries, similarity), guide)


def positives_of(rows: AnyRows, similarity: Similarity) -> Anchors:
    """The rows' positives as anchors."""
    guide = None if rows.guide is None else unit(rows.guide.positives)
    return Anchors(texts_for_similarity(rows.positives, similarity), guide)


def passages_of(everyone: AnyRows, similarity: Similarity) -> Rivals:
    """All passages; the first one of a query's own row is what it has to find."""
    texts, each, guide = everyone.all_passages, everyone.passages_each, everyone.guide
    places = torch.arange(len(texts), device=everyone.queries.device)  # [P * C]
    return Rivals(
        texts_for_similarity(texts, similarity),
        places // each,
        not_for_own=places % each == 0,
        ids=None if everyone.passage_ids is None else everyone.passage_ids.flatten(),
        guide=None if guide is None else unit(guide.all_passages),
    )


def other_passages(everyone: AnyRows, similarity: Similarity) -> Rivals:
    """All passages for a positive, which is compared with those of other rows."""
    all_of_them = passages_of(everyone, similarity)
    return Rivals(
        all_of_them.embeddings,
        all_of_them.rows,
        not_for_own=torch.ones_like(all_of_them.not_for_own),
        ids=all_of_them.ids,
        guide=all_of_them.guide,
        can_be_hard=False,
    )


def other_queries(everyone: AnyRows, similarity: Similarity) -> Rivals:
    """All queries, for those of other rows; a query is known by its positive."""
    rows = torch.arange(len(everyone.queries), device=everyone.queries.device)
    guide = everyone.guide
    return Rivals(
        texts_for_similarity(everyone.queries, similarity),
        rows,
        not_for_own=torch.ones_like(rows, dtype=torch.bool),
        ids=None if everyone.passage_ids is None else everyone.passage_ids[:, 0],
        guide=None if guide is None else unit(guide.queries),
        can_be_hard=False,
    )
