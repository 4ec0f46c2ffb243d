"""Sentences → batches, the same on every number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ....data.batches import RowPlace, ShuffledBatches
from ....data.words.formats import Sentence
from ....data.words.tokenization import TokenizedSentence, WordTokenizer


NO_LABEL = -100


@dataclass
class WordExample:
    """One sentence as the model gets it."""

    sentence: TokenizedSentence
    labels: list[int]
    """One for each word that is read, [W]."""
    states: Tensor | None = None
    """Hidden states of these words, [W, d], where a frozen backbone has computed them."""


class WordDataset(Dataset[WordExample]):
    """All sentences of a split; a rank without a row of its own gets one whose words count for nothing."""

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
    """Tokenize a split; also how many words are cut off, or have no token, and so cannot be read."""
    numbers: Mapping[str, int] = {label: number for number, label in enumerate(labels)}
    examples, lost = [], 0
    for sentence, tokens in zip(sentences, tokenizer([each.words for each in sentences]), strict=True):
        known = [
            numbers.get(sentence.labels[word], NO_LABEL) if sentence.labels else NO_LABEL for word in tokens.words
        ]
        examples.append(WordExample(tokens, known))
        lost += len(sentence.words) - len(tokens.words)
    return examples, lost


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
