"""`stage: mntp`, from the recipe to the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....data.documents import load_documents
from ....diffusion.batches import TokenCollator
from ....diffusion.texts import texts_of_documents
from ....host.documents import asks_for_packing
from ....hparams.mntp import MntpOptions
from ....loading.predictor import load_token_predictor, set_up_masked_tokens
from ....model.packed import tokens_per_batch
from ...card import RunFacts, write_predictor_card
from ...masked_trainer import eval_sets_of, plotted_metrics
from ...workflow import make_batches, train_and_evaluate
from .corruption import MntpCorruption
from .trainer import MntpTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


def run_mntp(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train a decoder to predict masked tokens from both sides; called by the host's tuner."""
    options: MntpOptions = finetuning_args.stage_options
    setup = set_up_masked_tokens(options, model_args, otherwise="blank")
    data = load_documents(
        model_args,
        data_args,
        training_args,
        setup.tokenizer,
        line_by_line=options.line_by_line,
        packing=asks_for_packing(finetuning_args),
    )
    dataset, batches = make_batches(data.train, training_args, finetuning_args)
    model, record = load_token_predictor(setup, model_args, finetuning_args, training_args)

    corruption = MntpCorruption(
        seed=training_args.seed,
        mask_id=setup.mask.id,
        vocabulary_size=len(setup.tokenizer),
        special_ids=frozenset(setup.tokenizer.all_special_ids),
        probability=options.mlm_probability,
        masking=options.masking,
        shift=setup.shift,
    )
    max_tokens = tokens_per_batch(options.max_tokens_per_batch, training_args.device, training=True)
    collator = TokenCollator(texts_of_documents, corruption, max_tokens)
    eval_sets = eval_sets_of(data.evaluation)
    trainer = MntpTrainer(
        model=model,
        record=record,
        batches=batches,
        recipe=finetuning_args.recipe,
        eval_sets=eval_sets,
        eval_collator=collator,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        train_dataset=dataset,
        eval_dataset=eval_sets or None,
        callbacks=callbacks,
        **setup.tokenizer_module,
    )
    metrics = train_and_evaluate(trainer, training_args, finetuning_args, plotted_metrics(eval_sets, "loss"))
    if training_args.do_train:
        trainer.publish(
            lambda: write_predictor_card(
                RunFacts.gather(trainer, model_args, data_args),
                "Masked next-token prediction (LLM2Vec, arXiv 2404.05961) has made it read in both directions.",
                ("mntp", "masked-lm"),
                record,
                metrics,
                task="fill-mask",
                works=["llm2vec"],
                eval_sets=list(eval_sets),
            )
        )
