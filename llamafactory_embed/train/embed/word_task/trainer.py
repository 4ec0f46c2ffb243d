"""The training step of `stage: word-task`, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ....data.words.formats import Sentence
from ....evaluation.word_metrics import CUT, word_metrics
from ....loading.weights import load_backbone_weights, part_of_state_dict, save_backbone
from ...trainer import WrappedModelTrainer
from ..gather import gather_values
from .data import NO_LABEL, WordExample, collate_words
from .record import WordTaskRecord, load_classifier, save_classifier
from .tagger import SentenceGroup, WordTagger


@dataclass(frozen=True)
class WordEval:
    """Sentences to evaluate on, and the same as the model gets them."""

    sentences: list[Sentence]
    examples: list[WordExample]


class WordTaskTrainer(WrappedModelTrainer):
    """The host's trainer around a `WordTagger`. A step's loss is the mean over all its words."""

    sums_losses = True

    def __init__(self, *, model: WordTagger, record: WordTaskRecord, held_out: WordEval | None, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.record = record
        self.held_out = held_out

    @property
    def tagger(self) -> WordTagger:
        return self.wrapped_model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """This micro-batch's part of the step's loss, with its graph."""
        states = inputs["states"]
        groups = self._equal_forwards(self.tagger.group(inputs["sentences"])) if states is None else []
        scores = model(groups, states)  # [W, labels]
        labels = inputs["labels"]
        total = nn.functional.cross_entropy(scores.float(), labels, ignore_index=NO_LABEL, reduction="sum")
        loss = self.part_of_step_loss(total, self.loss_count(inputs), num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def loss_count(self, inputs: dict[str, Any]) -> Tensor:
        """The words of a micro-batch."""
        return (inputs["labels"] != NO_LABEL).sum()

    def add_forwards(self, forwards: list[SentenceGroup], count: int) -> list[SentenceGroup]:
        """The same with forwards of nothing."""
        return [*forwards, *(SentenceGroup.filler(forwards[0]) for _ in range(count - len(forwards)))]

    # ---------------------------------------------- evaluation ----------------------------------------------

    def evaluation_metrics(self) -> dict[str, float]:
        """Loss, accuracy, and what counts for these labels: F1 of entities, or the labels' mean F1."""
        assert self.held_out is not None
        predicted, loss = self.label(self.held_out)
        gold = [sentence.labels for sentence in self.held_out.sentences]
        return {"loss": loss} | word_metrics(gold, predicted)

    @torch.no_grad()
    def label(self, data: WordEval) -> tuple[list[list[str]], float]:
        """The label of every word, without dropout, and the mean loss over words whose label is known. Ranks share the
        sentences, unless the engine needs all of them in every forward."""
        ranks = 1 if self.is_sharded else self.args.world_size
        rank = 0 if self.is_sharded else self.args.process_index
        was_training = self.model.training
        self.model.eval()
        own = range(rank, len(data.examples), ranks)
        numbers: dict[int, list[int]] = {}
        total, words = 0.0, 0
        size = self.args.per_device_eval_batch_size
        for start in tqdm(range(0, len(own), size), desc="Labelling", disable=self.args.disable_tqdm, leave=False):
            batch = own[start : start + size]
            inputs = self._prepare_inputs(collate_words([data.examples[index] for index in batch]))
            labels, states = inputs["labels"], inputs["states"]
            groups = self.tagger.group(inputs["sentences"]) if states is None else []
            scores = self.model(groups, states).float()
            total += float(nn.functional.cross_entropy(scores, labels, ignore_index=NO_LABEL, reduction="sum"))
            words += int((labels != NO_LABEL).sum())
            counts = [len(data.examples[index].labels) for index in batch]
            for index, predicted in zip(batch, scores.argmax(dim=-1).split(counts), strict=True):
                numbers[index] = predicted.tolist()
        self.model.train(was_training)
        if ranks > 1:
            parts = gather_values((numbers, total, words))
            numbers = {index: labels for part in parts for index, labels in part[0].items()}
            total, words = sum(part[1] for part in parts), sum(part[2] for part in parts)
        named = [self._named(data, index, numbers[index]) for index in range(len(data.examples))]
        return named, total / max(1, words)

    def _named(self, data: WordEval, index: int, numbers: Sequence[int]) -> list[str]:
        """Label numbers of the words that were read → a label of every word."""
        labels = [CUT] * len(data.sentences[index].words)
        for word, number in zip(data.examples[index].sentence.words, numbers, strict=True):
            labels[word] = self.record.labels[number]
        return labels

    # --------------------------------------------- checkpoints ----------------------------------------------

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """The classifier, and the backbone if it has learned."""
        if not self.tagger.is_frozen:
            save_backbone(self.tagger.backbone, folder, state_dict)
        classifier = part_of_state_dict(state_dict, "classifier.") or self.tagger.classifier.state_dict()
        save_classifier(folder, classifier)
        self.record.save(folder)

    def read_checkpoint(self, folder: Path) -> None:
        if not self.tagger.is_frozen:
            load_backbone_weights(self.tagger.backbone, folder)
        self.tagger.classifier.load_state_dict(load_classifier(folder))
