"""Learn from a teacher, say a cross-encoder, that has scored each query's own passages."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .similarity import Reduction, Similarity, own_similarities, reduce_rows


def kl_distillation(
    queries: Tensor,
    passages: Tensor,
    teacher_scores: Tensor,
    *,
    temperature: float,
    teacher_temperature: float = 1.0,
    similarity: Similarity = "cosine",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) over queries' [B, d] own passages [B, 1 + K, d] with teacher scores [B, 1 + K].

    Both are softmaxes, of the scores and of the similarities, each divided by its temperature.
    """
    student = (own_similarities(queries, passages, similarity) / temperature).log_softmax(dim=1)
    teacher = (teacher_scores.to(student.dtype) / teacher_temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)  # [B]
    return reduce_rows(divergence, reduction)


def margin_mse(
    queries: Tensor,
    passages: Tensor,
    teacher_scores: Tensor,
    *,
    similarity: Similarity = "dot",
    reduction: Reduction = "mean",
) -> Tensor:
    """MarginMSE (Hofstätter et al. 2020): the student's margin between the positive, the first of the passages
    [B, 1 + K, d], and each negative must be the teacher's; mean square over the K negatives.

    Nothing is scaled: with cosines the teacher's scores must lie in [-1, 1] to be reachable.
    """
    student = own_similarities(queries, passages, similarity)  # [B, 1 + K]
    teacher = teacher_scores.to(student.dtype)
    student_margins = student[:, :1] - student[:, 1:]  # [B, K]
    teacher_margins = teacher[:, :1] - teacher[:, 1:]
    return reduce_rows((student_margins - teacher_margins).square().mean(dim=1), reduction)
