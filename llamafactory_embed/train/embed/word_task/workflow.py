"""`stage: word-task`, from the recipe to the checkpoint and the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.extras import logging
from llamafactory.model import load_tokenizer
from tqdm.auto import tqdm

from ....data.words.reader import refuse_unseen_labels
from ....data.words.tokenization import WordTokenizer
from ....evaluation.word_metrics import draw_confusions, format_table, per_label
from ....files import write_text
from ....hparams.word_task import WordTaskOptions
from ....loading.backbone import adapter_folders
from ...card import RunFacts, write_card
from ...checks import check_what_learns
from ...workflow import train_and_evaluate
from .data import SentenceBatches, WordDataset, WordExample, collate_words, examples_of, load_splits
from .record import WordTaskRecord, find_classifier
from .tagger import WordTagger, load_tagger
from .trainer import WordEval, WordTaskTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


logger = logging.get_logger(__name__)

PLOTTED = ("loss", "eval_loss", "eval_accuracy")  # what `plot_loss` draws


def run_word_task(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train a classifier of words, evaluate it, label with it; called by the host's tuner."""
    options: WordTaskOptions = finetuning_args.stage_options
    check_what_learns(options, finetuning_args)
    splits = load_splits(options, model_args, data_args, training_args)
    trained = find_classifier(
        [options.classifier_path, *adapter_folders(model_args)[::-1], model_args.model_name_or_path]
    )
    labels = choose_labels(splits.labels, trained, options)
    is_checked = options.unseen_labels == "refuse"
    refuse_unseen_labels([*splits.training, *splits.held_out] if is_checked else splits.training, labels)

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = WordTokenizer.create(
        tokenizer_module["tokenizer"], data_args.cutoff_len, options.retroactive_labels, options.space_before_words
    )
    tagger, record = load_tagger(tokenizer, labels, trained, options, model_args, finetuning_args, training_args)
    train_examples = examples_of(splits.training, tokenizer, labels, "training")
    eval_examples = examples_of(splits.held_out, tokenizer, labels, "evaluation")
    if tagger.is_frozen and options.cache_hidden_states:
        tagger.to(training_args.device)
        cache_states(tagger, [*train_examples, *eval_examples], training_args.disable_tqdm)

    trainer = WordTaskTrainer(
        model=tagger,
        record=record,
        held_out=WordEval(splits.held_out, eval_examples) if splits.held_out else None,
        batches=make_sentence_batches(len(train_examples), training_args, finetuning_args),
        recipe=finetuning_args.recipe,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collate_words,
        train_dataset=WordDataset(train_examples) if train_examples else None,
        eval_dataset=splits.held_out or None,
        callbacks=callbacks,
        **tokenizer_module,
    )
    metrics = train_and_evaluate(trainer, training_args, finetuning_args, PLOTTED)
    if splits.held_out and (training_args.do_eval or training_args.do_predict):
        report(trainer, Path(training_args.output_dir), training_args.do_predict)
    if training_args.do_train:
        trainer.publish(lambda: write_word_card(trainer, options, model_args, data_args, metrics))


def choose_labels(labels: list[str], trained: Path | None, options: WordTaskOptions) -> list[str]:
    """The labels of the classifier that the recipe starts from, or else those of the training data."""
    if options.classifier_path is not None and trained != Path(options.classifier_path):
        raise ValueError(f"`classifier_path: {options.classifier_path}` holds no classifier of `stage: word-task`.")
    if trained is not None:
        return WordTaskRecord.load(trained).labels
    if not labels:
        raise ValueError(
            "There is no trained classifier to evaluate: name its folder in `classifier_path`, or set "
            "`do_train: true`."
        )
    return labels


def make_sentence_batches(
    count: int, training_args: TrainingArguments, finetuning_args: FinetuningArguments
) -> SentenceBatches | None:
    """This rank's part of the global batches of `count` sentences."""
    if count == 0:
        return None
    return SentenceBatches(
        count,
        training_args.per_device_train_batch_size,
        training_args.seed if training_args.data_seed is None else training_args.data_seed,
        rank=training_args.process_index,
        world_size=training_args.world_size,
        shuffle=not finetuning_args.disable_shuffling,
    )


def cache_states(tagger: WordTagger, examples: Sequence[WordExample], quiet: bool, at_once: int = 64) -> None:
    """Run the frozen backbone once over all sentences."""
    tagger.eval()
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].sentence.token_ids))
    with torch.no_grad(), tqdm(total=len(examples), desc="Hidden states", disable=quiet, leave=False) as progress:
        for start in range(0, len(order), at_once):
            batch = [examples[index] for index in order[start : start + at_once]]
            states = tagger.word_states(tagger.group([example.sentence for example in batch])).cpu()
            for example, own_states in zip(batch, states.split([len(each.labels) for each in batch]), strict=True):
                example.states = own_states.clone()
            progress.update(len(batch))


def report(trainer: WordTaskTrainer, folder: Path, writes_predictions: bool) -> None:
    """Write the table of labels and the picture of confusions, and the predictions as CoNLL."""
    assert trainer.held_out is not None
    predicted, _ = trainer.label(trainer.held_out)
    if not trainer.is_world_process_zero():
        return
    sentences = trainer.held_out.sentences
    folder.mkdir(parents=True, exist_ok=True)
    gold = [sentence.labels for sentence in sentences]
    if any(gold):
        table = format_table(per_label(gold, predicted))
        logger.info_rank0(f"Words by label:\n{table}")
        write_text(folder / "labels.txt", table + "\n")
        draw_confusions(gold, predicted, folder / "confusions.png")
    if writes_predictions:
        lines = []
        for sentence, labels in zip(sentences, predicted, strict=True):
            columns = [sentence.words, sentence.labels, labels] if sentence.labels else [sentence.words, labels]
            lines += ["\t".join(cells) for cells in zip(*columns, strict=True)] + [""]
        write_text(folder / "predictions.conll", "\n".join(lines) + "\n")


def write_word_card(
    trainer: WordTaskTrainer,
    options: WordTaskOptions,
    model_args: ModelArguments,
    data_args: DataArguments,
    metrics: dict[str, float],
) -> None:
    """Write `README.md` into the checkpoint."""
    write_card(
        RunFacts.gather(trainer, model_args, data_args),
        f"It labels words: `{options.word_task}`.",
        (),
        {
            "labels": ", ".join(f"`{label}`" for label in trainer.record.labels),
            "attention": "the encoder's own" if trainer.tagger.is_encoder else options.attention,
            "backbone": options.train_backbone,
        },
        metrics,
        task="token-classification",
    )
