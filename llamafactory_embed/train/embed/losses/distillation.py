"""Learn from a teacher, say a cross-encoder, that has scored each query's own passages."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from .rows import AnyRows


def kl_distillation(rows: AnyRows, options: ContrastiveOptions) -> Tensor:
    """KL(teacher ‖ student) over each query's own passages, [B].

    Both are softmaxes, of the teacher's scores and of the similarities, each divided by its temperature.
    """
    assert rows.scores is not None
    similarities = rows.own_similarities(options.similarity)  # [B, 1 + K]
    student = (similarities / options.loss_temperature).log_softmax(dim=1)
    teacher = (rows.scores.to(student.dtype) / options.teacher_temperature).log_softmax(dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def margin_distillation(rows: AnyRows, options: ContrastiveOptions) -> Tensor:
    """MarginMSE (Hofstätter et al. 2020): the mean square over the K negatives of how far the student's margin between
    positive and negative is from the teacher's, [B].

    Nothing is scaled: with cosines the student can only reach teacher scores in [-1, 1].
    """
    assert rows.scores is not None
    student = rows.own_similarities(options.similarity)  # [B, 1 + K]
    teacher = rows.scores.to(student.dtype)
    student_margins = student[:, :1] - student[:, 1:]  # [B, K]
    teacher_margins = teacher[:, :1] - teacher[:, 1:]
    return (student_margins - teacher_margins).square().mean(dim=1)
