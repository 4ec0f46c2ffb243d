"""Which of the host's templates turns a conversation into the prompt of a diffusion language model."""

from __future__ import annotations

from typing import Any

from ..hparams.ddm import DiffusionTuningOptions
from ..model.families import Family


NO_TEMPLATE = "empty"  # the host's template that adds nothing


def choose_template(
    options: DiffusionTuningOptions, family: Family | None, asked: str | None, tokenizer: Any
) -> str | None:
    """The host's name of the template; None: the chat template of the tokenizer."""
    if options.ddm_format == "diffuseq":
        return NO_TEMPLATE
    if asked is not None:
        return asked
    if tokenizer.chat_template is None and (family is None or family.template is None):
        raise ValueError(
            "`template` is not set, and neither the tokenizer nor the model's family has one: name one, for instance "
            "`template: default`, or use `ddm_format: diffuseq`."
        )
    return None if tokenizer.chat_template is not None or family is None else family.template
