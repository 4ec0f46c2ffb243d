"""`stage: ddm` and `stage: ddm-sft`, from the recipe to the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llamafactory.extras import logging

from ...data.documents import load_documents
from ...diffusion.bound import EvaluationCollator
from ...diffusion.corruption import NoiseDraws
from ...diffusion.texts import TextsOfRows, diffuseq_tokens, texts_of_documents
from ...host.documents import asks_for_packing
from ...hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ...loading.adapted_checkpoint import start_from_checkpoint
from ...loading.predictor import (
    MaskedTokenSetup,
    check_family,
    load_token_predictor,
    set_up_masked_tokens,
    settle_block_size,
)
from ...model.families import find_family
from ...model.mask_token import MaskedTokenRecord
from ...model.packed import tokens_per_batch
from ...model.token_predictor import TokenPredictor
from ...sampling.predict import predict
from ...sampling.rows import PredictionRow
from ...sampling.settings import SamplingSettings
from ..masked_trainer import eval_sets_of
from ..token_card import write_model_card
from ..workflow import make_batches, train_and_evaluate
from .answers import ChatTexts, DiffuSeqTexts, load_answers
from .collator import DiffusionCollator
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
class DiffusionData:
    """Rows, and how they become texts."""

    train: Any | None
    evaluation: Any | None
    training_texts: TextsOfRows
    evaluation_texts: TextsOfRows
    prediction_rows: Callable[[Iterable[Mapping[str, Any]]], list[PredictionRow]]
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

    def load_data(setup: MaskedTokenSetup) -> DiffusionData:
        data = load_documents(
            model_args,
            data_args,
            training_args,
            setup.tokenizer,
            line_by_line=False,
            packing=asks_for_packing(finetuning_args),
        )
        rows = partial(
            rows_of_documents,
            options=finetuning_args.stage_options,
            mask_token_id=setup.mask.id,
            eos=setup.tokenizer.eos_token_id,
        )
        return DiffusionData(data.train, data.evaluation, texts_of_documents, texts_of_documents, rows)

    run(load_data, model_args, data_args, training_args, finetuning_args, generating_args, callbacks)


def run_ddm_sft(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train and evaluate a diffusion language model on prompts with answers; called by the host's tuner."""
    options: DiffusionTuningOptions = finetuning_args.stage_options

    def load_data(setup: MaskedTokenSetup) -> DiffusionData:
        data = load_answers(
            options, find_family(setup.config), model_args, data_args, training_args, setup.tokenizer_module
        )
        tokenizer, cutoff_len = setup.tokenizer, data_args.cutoff_len
        special = diffuseq_tokens(tokenizer, options.ddm_separator) if options.ddm_format == "diffuseq" else None
        rows = partial(rows_of_answers, options=options, cutoff_len=cutoff_len, special=special)
        if special is not None:
            texts = DiffuSeqTexts(cutoff_len, special)
            return DiffusionData(data.train, data.evaluation, texts, texts, rows)

        def chat_texts(padding: str) -> ChatTexts:
            return ChatTexts(cutoff_len, tokenizer.bos_token_id, tokenizer.eos_token_id, data.end_tokens, padding)

        padding = options.eos_padding or "batch"
        # What a batch is padded to depends on its other rows, which must not change a row's bound.
        held_out = chat_texts("never" if padding == "batch" else padding)
        return DiffusionData(data.train, data.evaluation, chat_texts(padding), held_out, rows, data.end_tokens)

    run(load_data, model_args, data_args, training_args, finetuning_args, generating_args, callbacks)


def run(
    load_data: Callable[[MaskedTokenSetup], DiffusionData],
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None,
) -> None:
    """What both stages do with their data."""
    options: DiffusionOptions = finetuning_args.stage_options
    model_args = start_from_checkpoint(model_args, options.checkpoint_dir, training_args)
    setup = set_up_masked_tokens(options, model_args, otherwise="mask")
    check_family(options, setup)
    options = settle_block_size(options, setup.remembered)
    only_predicts = training_args.do_predict and not (training_args.do_train or training_args.do_eval)
    if not only_predicts:
        check_blocks(options, data_args.cutoff_len)
    if training_args.do_predict:  # contradictions come before the training, not after it
        SamplingSettings.from_options(
            options, generating_args, family=find_family(setup.config), block_size=options.block_size
        )
    data = load_data(setup)
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        logger.info_rank0("The data are prepared; with `do_train`, `do_eval` or `do_predict` they would be used.")
        return

    model, record = load_token_predictor(setup, model_args, finetuning_args, training_args, options.block_size)
    if not only_predicts:
        check_windows(options, model.config, data_args.cutoff_len)
    trainer = make_trainer(model, record, options, setup, data, data_args, training_args, finetuning_args, callbacks)
    if training_args.do_predict and trainer.is_sharded:
        raise ValueError(
            "`do_predict` needs the whole model on every rank, and FSDP or ZeRO-3 cuts it up: predict in a run "
            "of its own without them."
        )
    plotted = ["loss", *(f"eval_{f'{name}_' if name else ''}bits_per_token" for name in trainer.eval_sets)]
    metrics = train_and_evaluate(trainer, training_args, finetuning_args, plotted)
    if training_args.do_train:
        trainer.write_card = lambda: write_model_card(
            training_args.output_dir,
            model_args.model_name_or_path,
            "It is a diffusion language model: it fills in hidden tokens in any order.",
            ("diffusion", "text-generation"),
            record,
            data_args.dataset or [],
            metrics,
        )
        trainer.publish()
    if training_args.do_predict:
        predicted = predict(
            model.backbone,
            setup.tokenizer,
            data.prediction_rows(all_examples(trainer.eval_sets)),
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
    options: DiffusionOptions,
    setup: MaskedTokenSetup,
    data: DiffusionData,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    callbacks: list[Any] | None,
) -> DiffusionTrainer:
    """Batches, corruption and evaluation around the model."""
    dataset, batches = make_batches(data.train, training_args, finetuning_args)
    rows_per_batch = training_args.per_device_train_batch_size * training_args.world_size
    rows_per_step = rows_per_batch * training_args.gradient_accumulation_steps
    max_tokens = tokens_per_batch(options.max_tokens_per_batch, training_args.device)
    eval_sets = eval_sets_of(data.evaluation)
    return DiffusionTrainer(
        model=model,
        options=options,
        longest_text=data_args.cutoff_len,
        record=record,
        batches=batches,
        recipe=finetuning_args.recipe,
        eval_sets=eval_sets,
        eval_collator=EvaluationCollator(
            data.evaluation_texts,
            options.elbo_samples,
            mask_token_id=setup.mask.id,
            shift=setup.shift,
            block_size=options.block_size,
            max_tokens=max_tokens,
        ),
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=DiffusionCollator(
            data.training_texts,
            options,
            draws=NoiseDraws(training_args.seed, rows_per_step, options.antithetic_time, options.time_epsilon),
            mask_token_id=setup.mask.id,
            shift=setup.shift,
            max_tokens=max_tokens,
        ),
        train_dataset=dataset,
        eval_dataset=eval_sets or None,
        callbacks=callbacks,
        **setup.tokenizer_module,
    )


def check_blocks(options: DiffusionOptions, cutoff_len: int) -> None:
    """Whole rows must be whole blocks, or their last one would be another size than it is in generation."""
    size = options.block_size
    if size is not None and cutoff_len % size:
        raise ValueError(
            f"`block_size: {size}` does not divide `cutoff_len: {cutoff_len}`: make `cutoff_len` a multiple of it."
        )


def check_windows(options: DiffusionOptions, config: Any, cutoff_len: int) -> None:
    """In block diffusion tokens stand twice in a row, so that distances in the row are not those in the text."""
    window = getattr(config, "sliding_window", None)
    if options.block_size is not None and window is not None and window < 2 * cutoff_len:
        raise ValueError(
            f"`block_size` cannot keep this model's sliding window of {window} tokens at `cutoff_len: {cutoff_len}`: "
            f"set `sliding_window: ignore`, or a `cutoff_len` of at most {window // 2}."
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
