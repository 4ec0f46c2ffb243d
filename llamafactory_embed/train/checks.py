"""What the stages refuse before anything is loaded, whatever the data are: their `check` functions.

They stand apart from the workflows so that `recipe check` imports neither a trainer nor a model for them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..data.prompts import parse_template
from ..hparams.ddm import DiffusionOptions
from ..hparams.embedding import EmbeddingOptions
from ..hparams.objectives import read_objectives
from ..hparams.tdro import TdroOptions
from ..hparams.word_task import WordTaskOptions
from ..sampling.settings import SamplingSettings


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


def check_contrastive(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
) -> None:
    """Refuse recipes that cannot work whatever the data are."""
    check_templates(finetuning_args.stage_options)
    read_objectives(finetuning_args.stage_options)


def check_tdro(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
) -> None:
    """Refuse recipes that cannot work whatever the data are."""
    options: TdroOptions = finetuning_args.stage_options
    check_tdro_arguments(options, data_args, training_args, finetuning_args)
    check_templates(options)


def check_tdro_arguments(
    options: TdroOptions,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
) -> None:
    """Refuse recipes that could not end with task weights."""
    if not training_args.do_train:
        raise ValueError(
            "`stage: tdro` finds weights by training: set `do_train: true`, or evaluate its checkpoint with "
            "`stage: contrastive`."
        )
    if data_args.streaming:
        raise ValueError(
            "`streaming`: a stream does not tell the size of its task, which `stage: tdro` needs: leave it out."
        )
    if finetuning_args.ref_model_adapters and not finetuning_args.ref_model:
        raise ValueError("`ref_model_adapters` needs `ref_model`: name the model that these adapters belong to.")
    if options.num_negatives < 1 and not options.tdro_in_batch_negatives:
        raise ValueError(
            "`stage: tdro` compares a query with its own hard negatives only: set `num_negatives` to at least 1 "
            "(tDRO uses 7), or `tdro_in_batch_negatives: true`."
        )
    rows = training_args.per_device_train_batch_size * training_args.world_size
    if options.num_negatives < 1 and rows == 1:
        raise ValueError(
            "`per_device_train_batch_size: 1` without negatives leaves a query nothing to be compared with, and a "
            "loss of 0: raise it, or set `num_negatives` to at least 1."
        )


def check_word_task(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
) -> None:
    """Refuse recipes that cannot work whatever the data are."""
    check_what_learns(finetuning_args.stage_options, finetuning_args)


def check_what_learns(options: WordTaskOptions, finetuning_args: FinetuningArguments) -> None:
    """`train_backbone` and the host's `finetuning_type` must not contradict each other."""
    learns, kind = options.train_backbone, finetuning_args.finetuning_type
    if learns != "frozen" and learns != kind:
        raise ValueError(
            f"`train_backbone: {learns}` and `finetuning_type: {kind}` contradict each other: set both to {learns}."
        )


def check_ddm(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
) -> None:
    """Refuse recipes that cannot work, whatever the model's family and the checkpoint bring."""
    options: DiffusionOptions = finetuning_args.stage_options
    if options.block_size and (training_args.do_train or training_args.do_eval):
        check_blocks(options, data_args.cutoff_len)
    if training_args.do_predict:
        if options.sampling_algorithm is None or options.block_size is None:  # then they may bring the blocks
            options = dataclasses.replace(options, sampling_cache="none", cache_refresh_steps=None)
        SamplingSettings.from_options(options, generating_args, block_size=options.block_size or None)


def check_blocks(options: DiffusionOptions, cutoff_len: int) -> None:
    """Require whole rows to be whole blocks: otherwise the last one would have another size than in generation."""
    size = options.block_size
    if size is not None and cutoff_len % size:
        raise ValueError(
            f"`block_size: {size}` does not divide `cutoff_len: {cutoff_len}`: make `cutoff_len` a multiple of it."
        )


def check_templates(options: EmbeddingOptions) -> None:
    """Refuse templates that have no place for the text."""
    parse_template(options.query_template, "query_template")
    parse_template(options.document_template, "document_template")
