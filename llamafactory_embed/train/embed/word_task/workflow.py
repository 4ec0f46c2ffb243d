"""`stage: word-task`, from the recipe to the checkpoint and the predictions."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.extras import logging
from llamafactory.model import load_tokenizer
from tqdm.auto import tqdm

from ....data.retrieval.reader import HubOptions
from ....data.words.reader import WordData, load_sentences
from ....data.words.sentences import Sentence, refuse_unseen_labels
from ....data.words.tokenization import WordTokenizer
from ....evaluation.word_metrics import draw_confusions, format_table, per_label
from ....hparams.word_task import WordTaskOptions
from ....loading.backbone import adapter_folders, attention_backend
from ...card import write_card
from ...workflow import train_and_evaluate
from .backbone import check_what_learns, load_backbone
from .batches import SentenceBatches, WordDataset, WordExample, collate_words, make_examples
from .record import WordTaskRecord, find_classifier, load_classifier
from .tagger import WordTagger
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
    training, held_out, known = load_train_and_eval_sentences(options, model_args, data_args, training_args)
    trained = find_classifier(
        [options.classifier_path, *adapter_folders(model_args)[::-1], model_args.model_name_or_path]
    )
    labels = choose_labels(known, trained, options)
    refuse_unseen_labels(training if options.unseen_labels == "count_as_wrong" else [*training, *held_out], labels)

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = WordTokenizer.create(
        tokenizer_module["tokenizer"], data_args.cutoff_len, options.retroactive_labels, options.space_before_words
    )
    loaded = load_backbone(tokenizer.tokenizer, options, model_args, finetuning_args, training_args)
    tagger = WordTagger(
        loaded.model,
        len(labels),
        attention=options.attention,
        sliding_window=options.sliding_window,
        merge_subwords=options.merge_subwords,
        dropout=options.classifier_dropout,
        is_frozen=options.train_backbone == "frozen",
        max_tokens=options.max_tokens_per_batch,
        backend=attention_backend(model_args.flash_attn),
    )
    if trained is not None:
        WordTaskRecord.load(trained).check_read_alike(options, tokenizer.space_before_words, trained)
        tagger.classifier.load_state_dict(load_classifier(trained))

    train_examples = examples_of(training, tokenizer, labels, "training")
    eval_examples = examples_of(held_out, tokenizer, labels, "evaluation")
    if tagger.is_frozen and options.cache_hidden_states:
        tagger.to(training_args.device)
        cache_states(tagger, [*train_examples, *eval_examples], training_args.disable_tqdm)
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    trainer = WordTaskTrainer(
        model=tagger,
        record=WordTaskRecord(
            word_task=options.word_task,
            labels=labels,
            attention=options.attention,
            sliding_window=options.sliding_window,
            retroactive_labels=options.retroactive_labels,
            merge_subwords=options.merge_subwords,
            space_before_words=tokenizer.space_before_words,
            base_model=model_args.model_name_or_path,
            merged_adapters=loaded.merged_adapters,
        ),
        held_out=WordEval(held_out, eval_examples) if held_out else None,
        batches=SentenceBatches(
            len(train_examples),
            training_args.per_device_train_batch_size,
            seed,
            training_args.process_index,
            training_args.world_size,
            shuffle=not finetuning_args.disable_shuffling,
        )
        if train_examples
        else None,
        recipe=finetuning_args.recipe,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collate_words,
        train_dataset=WordDataset(train_examples) if train_examples else None,
        eval_dataset=held_out or None,
        callbacks=callbacks,
        **tokenizer_module,
    )

    metrics = train_and_evaluate(trainer, training_args, finetuning_args, ["loss", "eval_loss", "eval_accuracy"])
    if held_out and (training_args.do_eval or training_args.do_predict):
        report(trainer, Path(training_args.output_dir), training_args.do_predict)
    if training_args.do_train:
        trainer.publish(
            lambda: write_card(
                training_args.output_dir,
                model_args.model_name_or_path,
                f"It labels words: `{options.word_task}`.",
                ("token-classification",),
                {
                    "labels": ", ".join(f"`{label}`" for label in labels),
                    "attention": "the encoder's own" if tagger.is_encoder else options.attention,
                    "backbone": options.train_backbone,
                    "data": ", ".join(data_args.dataset),
                },
                metrics,
            )
        )


def load_train_and_eval_sentences(
    options: WordTaskOptions, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> tuple[list[Sentence], list[Sentence], list[str]]:
    """Read `dataset` and `eval_dataset`, or hold out a part (`val_size`), before any model is loaded; and the labels
    that training knows. Labels are needed unless words are only to be labelled."""
    hub = HubOptions(model_args.cache_dir, model_args.hf_hub_token)
    needs_labels = training_args.do_train or training_args.do_eval

    def load(names: list[str] | None) -> WordData:
        if not names:
            return WordData([], [])
        return load_sentences(
            names,
            data_args.dataset_dir,
            options.word_task if needs_labels else None,
            max_samples=data_args.max_samples,
            skip_bad_rows=options.skip_bad_rows,
            hub=hub,
        )

    data = load(data_args.dataset if training_args.do_train else None)
    training, held_out = data.sentences, load(data_args.eval_dataset).sentences
    if training and not held_out and data_args.val_size > 0:
        order = random.Random(training_args.seed).sample(range(len(training)), len(training))
        size = data_args.val_size
        count = int(size) if size >= 1 else max(1, round(size * len(training)))
        held_out = [training[index] for index in sorted(order[:count])]
        training = [training[index] for index in sorted(order[count:])]
    if not held_out and (training_args.do_predict or (training_args.do_eval and not training)):
        raise ValueError("`stage: word-task` evaluates on and labels `eval_dataset`: name one.")
    return training, held_out, data.labels


def choose_labels(known: list[str], trained: Path | None, options: WordTaskOptions) -> list[str]:
    """Those of the classifier that the recipe starts from, or of the training data."""
    if options.classifier_path is not None and trained != Path(options.classifier_path):
        raise ValueError(f"`classifier_path: {options.classifier_path}` holds no classifier of `stage: word-task`.")
    if trained is not None:
        return WordTaskRecord.load(trained).labels
    if not known:
        raise ValueError(
            "There is no trained classifier to evaluate: name its folder in `classifier_path`, or set "
            "`do_train: true`."
        )
    return known


def examples_of(
    sentences: Sequence[Sentence], tokenizer: WordTokenizer, labels: Sequence[str], which: str
) -> list[WordExample]:
    """Tokenize, and say what was lost."""
    examples, lost = make_examples(sentences, tokenizer, labels)
    if lost:
        consequence = "are not learned" if which == "training" else "count as wrong"
        logger.warning_rank0(
            f"{lost} words of the {which} data lie behind `cutoff_len: {tokenizer.max_length}` or have no token; they "
            f"{consequence}."
        )
    return examples


def cache_states(tagger: WordTagger, examples: Sequence[WordExample], quiet: bool, at_once: int = 64) -> None:
    """Run the frozen backbone once over all sentences."""
    tagger.eval()
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].sentence.token_ids))
    with torch.no_grad(), tqdm(total=len(examples), desc="Hidden states", disable=quiet, leave=False) as progress:
        for start in range(0, len(order), at_once):
            chosen = [examples[index] for index in order[start : start + at_once]]
            states = tagger.word_states([example.sentence for example in chosen]).cpu()
            for example, own in zip(chosen, states.split([len(each.labels) for each in chosen]), strict=True):
                example.states = own.clone()
            progress.update(len(chosen))


def report(trainer: WordTaskTrainer, folder: Path, writes_predictions: bool) -> None:
    """The table of labels and the picture of confusions; the predictions as CoNLL."""
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


def write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
