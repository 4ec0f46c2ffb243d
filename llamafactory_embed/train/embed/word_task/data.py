"""Sentences of a recipe → examples → batches, the same on every number of ranks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.extras import logging
from torch import Tensor
from torch.utils.data import Dataset

from ....data.batches import RowPlace, ShuffledBatches
from ....data.registry import HubOptions
from ....data.words.formats import Sentence
from ....data.words.reader import WordData, load_sentences
from ....data.words.tokenization import TokenizedSentence, WordTokenizer
from ....hparams.word_task import WordTaskOptions


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments


logger = logging.get_logger(__name__)

NO_LABEL = -100


@dataclass(frozen=True)
class WordSplits:
    """The sentences of a recipe, and the labels that its training data have."""

    training: list[Sentence]
    held_out: list[Sentence]
    labels: list[str]


def load_splits(
    options: WordTaskOptions, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> WordSplits:
    """Read `dataset` and `eval_dataset`, or hold out a part (`val_size`), before any model is loaded. Sentences that
    are only labelled need no labels."""
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
        training, held_out = split_sentences(training, data_args.val_size, training_args.seed)
    if not held_out and (training_args.do_predict or (training_args.do_eval and not training)):
        raise ValueError("`stage: word-task` evaluates on and labels `eval_dataset`: name one.")
    return WordSplits(training, held_out, data.labels)


def split_sentences(
    sentences: Sequence[Sentence], val_size: float, seed: int
) -> tuple[list[Sentence], list[Sentence]]:
    """Hold out a share of the sentences below 1, a number of them from 1 on (as in the host)."""
    order = random.Random(seed).sample(range(len(sentences)), len(sentences))
    count = int(val_size) if val_size >= 1 else max(1, round(val_size * len(sentences)))
    kept, held_out = ([sentences[index] for index in sorted(part)] for part in (order[count:], order[:count]))
    return kept, held_out


@dataclass
class WordExample:
    """One sentence as the model gets it."""

    sentence: TokenizedSentence
    labels: list[int]
    """One for each word that is read, [W]."""
    states: Tensor | None = None
    """Hidden states of these words, [W, d], where a frozen backbone has computed them."""


class WordDataset(Dataset[WordExample]):
    """All sentences of a split; a filler, for a rank that has none of a batch's sentences, has no labels."""

    def __init__(self, examples: Sequence[WordExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: RowPlace) -> WordExample:
        example = self.examples[place.index]
        if not place.is_filler:
            return example
        return WordExample(example.sentence, [NO_LABEL] * len(example.labels), example.states)


def make_examples(
    sentences: Sequence[Sentence], tokenizer: WordTokenizer, labels: Sequence[str]
) -> tuple[list[WordExample], int]:
    """Tokenize a split, and count the words that cannot be read because they are cut off or have no token."""
    numbers: Mapping[str, int] = {label: number for number, label in enumerate(labels)}
    examples, lost = [], 0
    for sentence, tokens in zip(sentences, tokenizer([each.words for each in sentences]), strict=True):
        labelled = [
            numbers.get(sentence.labels[word], NO_LABEL) if sentence.labels else NO_LABEL for word in tokens.words
        ]
        examples.append(WordExample(tokens, labelled))
        lost += len(sentence.words) - len(tokens.words)
    return examples, lost


def examples_of(
    sentences: Sequence[Sentence], tokenizer: WordTokenizer, labels: Sequence[str], which: str
) -> list[WordExample]:
    """Tokenize a split, and warn of words that cannot be read."""
    examples, lost = make_examples(sentences, tokenizer, labels)
    if lost:
        consequence = "are not learned" if which == "training" else "count as wrong"
        logger.warning_rank0(
            f"{lost} words of the {which} data come after `cutoff_len: {tokenizer.max_length}` or have no token; they "
            f"{consequence}."
        )
    return examples


class SentenceBatches(ShuffledBatches[RowPlace]):
    """This rank's part of global batches of sentences, as the keys of a `WordDataset`."""

    def row(self, place: RowPlace) -> RowPlace:
        return place


def collate_words(examples: Sequence[WordExample]) -> dict[str, Any]:
    """Examples → the model's inputs, and `labels` [W] of all their words."""
    labels = torch.tensor([label for example in examples for label in example.labels], dtype=torch.long)
    states = [example.states for example in examples if example.states is not None]
    tokens = torch.tensor([token for example in examples for token in example.sentence.token_ids])
    return {
        "input_ids": tokens,  # what the Trainer counts tokens by
        "sentences": [example.sentence for example in examples],
        "states": torch.cat(states) if states else None,
        "labels": labels,
    }
