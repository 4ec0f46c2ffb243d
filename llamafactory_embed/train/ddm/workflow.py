"""`stage: ddm` and `stage: ddm-sft`, from the recipe to the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset
from llamafactory.extras import logging
from transformers import PretrainedConfig

from ...data.documents import load_documents
from ...diffusion.batches import TextsOfRows, TokenCollator
from ...diffusion.bound import BoundCorruption
from ...diffusion.noise import NoiseDraws
from ...diffusion.texts import diffuseq_tokens, texts_of_documents
from ...host.documents import asks_for_packing
from ...hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ...loading.adapted_checkpoint import start_from_checkpoint
from ...loading.predictor import MaskedTokenSetup, load_token_predictor, set_up_masked_tokens
from ...model.families import find_family
from ...model.mask_token import MaskedTokenRecord
from ...model.packed import tokens_per_batch
from ...model.token_predictor import TokenPredictor
from ...sampling.predict import predict
from ...sampling.rows import PredictionRow
from ...sampling.settings import SamplingSettings
from ..card import RunFacts, write_predictor_card
from ..checks import check_blocks
from ..masked_trainer import eval_sets_of, plotted_metrics
from ..workflow import make_batches, train_and_evaluate
from .answers import answer_texts, load_answers
from .corruption import DiffusionCorruption
from .prediction import all_examples, rows_of_answers, rows_of_documents
from .trainer import DiffusionTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DiffusionStart:
    """What a recipe starts from, before any data are read."""

    model_args: ModelArguments
    options: DiffusionOptions
    setup: MaskedTokenSetup


@dataclass(frozen=True)
class DiffusionData:
    """Rows, and how they become texts."""

    train: Dataset | IterableDataset | None
    eval_sets: Mapping[str, Sequence[Mapping[str, Any]]]
    training_texts: TextsOfRows
    evaluation_texts: TextsOfRows
    to_predict: list[PredictionRow]
    """What `do_predict` generates: made before the training, so that a row without room is found before it."""
    end_tokens: frozenset[int] | None = None
    """What ends an answer, where that is not EOS alone."""


def run_ddm(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train and evaluate a diffusion language model on documents; called by the host's tuner."""
    start = prepare(model_args, data_args, training_args, finetuning_args, generating_args)
    data = load_document_data(start, data_args, training_args, finetuning_args)
    run(start, data, data_args, training_args, finetuning_args, generating_args, callbacks)


def run_ddm_sft(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train and evaluate a diffusion language model on prompts with answers; called by the host's tuner."""
    start = prepare(model_args, data_args, training_args, finetuning_args, generating_args)
    data = load_answer_data(start, data_args, training_args)
    run(start, data, data_args, training_args, finetuning_args, generating_args, callbacks)


def prepare(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
) -> DiffusionStart:
    """Settle options, tokenizer, mask token and shift, and refuse what contradicts itself before data are read."""
    options: DiffusionOptions = finetuning_args.stage_options
    model_args = start_from_checkpoint(model_args, options.checkpoint_dir, training_args)
    setup = set_up_masked_tokens(options, model_args, otherwise="mask")
    options = dataclasses.replace(options, block_size=setup.block_size)
    if not only_predicts(training_args):
        check_blocks(options, data_args.cutoff_len)
    if training_args.do_predict:
        family = find_family(setup.config)
        SamplingSettings.from_options(options, generating_args, family=family, block_size=options.block_size)
    return DiffusionStart(model_args, options, setup)


def load_document_data(
    start: DiffusionStart,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
) -> DiffusionData:
    """The rows of `stage: ddm`."""
    setup = start.setup
    packing = asks_for_packing(finetuning_args)
    data = load_documents(
        start.model_args,
        data_args,
        training_args,
        setup.tokenizer,
        line_by_line=False,
        packing=packing,
        with_gaps=training_args.do_predict and start.options.predict_task == "infilling",
    )
    eval_sets = eval_sets_of(data.evaluation)
    to_predict = []
    if training_args.do_predict:
        eos = setup.tokenizer.eos_token_id
        to_predict = rows_of_documents(all_examples(eval_sets), start.options, setup.mask.id, eos)
    return DiffusionData(data.train, eval_sets, texts_of_documents, texts_of_documents, to_predict)


def load_answer_data(
    start: DiffusionStart, data_args: DataArguments, training_args: TrainingArguments
) -> DiffusionData:
    """The rows of `stage: ddm-sft`."""
    assert isinstance(start.options, DiffusionTuningOptions)
    options, setup, cutoff_len = start.options, start.setup, data_args.cutoff_len
    family = find_family(setup.config)
    data = load_answers(options, family, start.model_args, data_args, training_args, setup.tokenizer_module)
    eval_sets = eval_sets_of(data.evaluation)
    to_predict = []
    if training_args.do_predict:
        special = None
        if options.ddm_format == "diffuseq":
            special = diffuseq_tokens(setup.tokenizer, options.ddm_separator, options.ddm_padding)
        to_predict = rows_of_answers(all_examples(eval_sets), options, cutoff_len, special)
    training_texts, evaluation_texts = answer_texts(options, cutoff_len, setup.tokenizer, data.end_tokens)
    end_tokens = data.end_tokens if options.ddm_format == "chat" else None
    return DiffusionData(data.train, eval_sets, training_texts, evaluation_texts, to_predict, end_tokens)


def run(
    start: DiffusionStart,
    data: DiffusionData,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None,
) -> None:
    """What both stages do with their data."""
    model_args, options, setup = start.model_args, start.options, start.setup
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        logger.info_rank0("The data are prepared; with `do_train`, `do_eval` or `do_predict` they would be used.")
        return

    model, record = load_token_predictor(setup, model_args, finetuning_args, training_args)
    if not only_predicts(training_args):
        check_windows(options, model.config, data_args.cutoff_len)
    trainer = make_trainer(model, record, start, data, data_args, training_args, finetuning_args, callbacks)
    if training_args.do_predict and trainer.is_sharded:
        raise ValueError(
            "`do_predict` needs the whole model on every rank, which FSDP and ZeRO-3 shard: predict in a separate run "
            "without them."
        )
    plotted = plotted_metrics(data.eval_sets, "bits_per_token")
    metrics = train_and_evaluate(trainer, training_args, finetuning_args, plotted)
    if training_args.do_train:
        trainer.publish(
            lambda: write_predictor_card(
                RunFacts.gather(trainer, model_args, data_args),
                "It is a diffusion language model: it fills in hidden tokens in any order.",
                ("diffusion",),
                record,
                metrics,
                task="text-generation",
                works=["diffullama"],
                eval_sets=list(data.eval_sets),
            )
        )
    if training_args.do_predict:
        predicted = predict(
            model.backbone,
            setup.tokenizer,
            data.to_predict,
            options=options,
            generating_args=generating_args,
            training_args=training_args,
            mask_token=setup.mask.id,
            shift=setup.shift,
            end_tokens=None if data.end_tokens is None else sorted(data.end_tokens),
            block_size=options.block_size,
            sliding_window=setup.sliding_window,
        )
        trainer.log_metrics("predict", predicted)
        trainer.save_metrics("predict", predicted)


def make_trainer(
    model: TokenPredictor,
    record: MaskedTokenRecord,
    start: DiffusionStart,
    data: DiffusionData,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    callbacks: list[Any] | None,
) -> DiffusionTrainer:
    """Batches, corruption and evaluation around the model."""
    options, setup = start.options, start.setup
    dataset, batches = make_batches(data.train, training_args, finetuning_args)
    rows_per_batch = training_args.per_device_train_batch_size * training_args.world_size
    rows_per_step = rows_per_batch * training_args.gradient_accumulation_steps
    draws = NoiseDraws(training_args.seed, rows_per_step, options.antithetic_time, options.time_epsilon)
    corruption = DiffusionCorruption(options, draws, setup.mask.id, setup.shift)
    bound = BoundCorruption(options.elbo_samples, setup.mask.id, setup.shift, options.block_size)
    max_tokens = tokens_per_batch(options.max_tokens_per_batch, training_args.device, training=True)
    return DiffusionTrainer(
        model=model,
        options=options,
        longest_text=data_args.cutoff_len,
        record=record,
        batches=batches,
        recipe=finetuning_args.recipe,
        eval_sets=data.eval_sets,
        eval_collator=TokenCollator(data.evaluation_texts, bound, max_tokens),
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=TokenCollator(data.training_texts, corruption, max_tokens),
        train_dataset=dataset,
        eval_dataset=data.eval_sets or None,
        callbacks=callbacks,
        **setup.tokenizer_module,
    )


def only_predicts(training_args: TrainingArguments) -> bool:
    """Whether nothing is trained or evaluated: then what concerns whole rows need not hold."""
    return training_args.do_predict and not (training_args.do_train or training_args.do_eval)


def check_windows(options: DiffusionOptions, config: PretrainedConfig, cutoff_len: int) -> None:
    """Refuse a sliding window that cuts a row of blocks: tokens stand there twice, so distances in the row are not
    those in the text."""
    window = getattr(config, "sliding_window", None)
    if options.block_size is not None and window is not None and window < 2 * cutoff_len:
        raise ValueError(
            f"`block_size` cannot keep this model's sliding window of {window} tokens at `cutoff_len: {cutoff_len}`: "
            f"set `sliding_window: ignore`, or a `cutoff_len` of at most {window // 2}."
        )
