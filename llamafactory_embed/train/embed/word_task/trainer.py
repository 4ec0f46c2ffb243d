"""The training step of `stage: word-task`, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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
    """The host's trainer around a `WordTagger`.

    A step's loss is the mean over all its words, over accumulated batches and ranks: accumulating equals a large
    batch, and several ranks equal one process.
    """

    def __init__(self, *, model: WordTagger, record: WordTaskRecord, held_out: WordEval | None, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.record = record
        self.held_out = held_out
        self.model_accepts_loss_kwargs = True  # the loss is divided here, by the words of the whole step

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
        words = (labels != NO_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total * self.accelerator.num_processes / words.clamp(min=1)  # engines average over ranks
        return (loss, {}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """The words of the step: of all its micro-batches, on all ranks."""
        if not batch_samples:
            return None
        words = torch.stack([(batch["labels"] != NO_LABEL).sum() for batch in batch_samples]).sum().to(device)
        if self.accelerator.num_processes > 1:
            dist.all_reduce(words)
        return words

    def _equal_forwards(self, groups: list[SentenceGroup]) -> list[SentenceGroup]:
        """As many forwards on every rank as on the one that runs most, where the engine needs that."""
        if not self.is_in_lockstep or self.accelerator.num_processes == 1:
            return groups
        count = torch.tensor(len(groups), device=self.args.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return self.add_forwards(groups, int(count))

    def add_forwards(self, forwards: list[SentenceGroup], count: int) -> list[SentenceGroup]:
        """The same with forwards of nothing."""
        return [*forwards, *(SentenceGroup.filler(forwards[0]) for _ in range(count - len(forwards)))]

    # ---------------------------------------------- evaluation ----------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, accuracy, and what counts for these labels: F1 of entities, or the labels' mean F1."""
        assert self.held_out is not None
        if self.optimizer is not None:
            self.optimizer.eval()
        predicted, loss = self.label(self.held_out)
        gold = [sentence.labels for sentence in self.held_out.sentences]
        found = {"loss": loss} | word_metrics(gold, predicted)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
