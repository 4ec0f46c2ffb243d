"""The training step of stages that predict masked tokens, and their evaluation on fixed masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.document_batches import DocumentRow
from ..loading.weights import load_backbone_weights, part_of_state_dict, save_backbone
from ..model.mask_token import (
    PARAMETER,
    MaskedTokenRecord,
    find_mask_embedding,
    load_mask_embedding,
    save_mask_embedding,
)
from ..model.packed import PackedBatch
from ..model.token_predictor import NO_LABEL, TokenBatch, TokenPredictor
from .trainer import WrappedModelTrainer


class TokenTrainer(WrappedModelTrainer):
    """The host's trainer around a `TokenPredictor`.

    A step's loss is the weighted sum of the losses of all its labels, over accumulated batches and ranks, divided by
    the sum of their divisors: accumulating equals a large batch, and several ranks equal one process.
    """

    def __init__(
        self,
        *,
        model: TokenPredictor,
        record: MaskedTokenRecord,
        eval_sets: Mapping[str, Sequence[Mapping[str, Any]]],
        eval_collator: Callable[[Sequence[DocumentRow]], dict[str, Any]],
        **kwargs: Any,
    ) -> None:
        """`eval_sets` are rows to evaluate on, by the name that their metrics carry ("" for none)."""
        super().__init__(model=model, **kwargs)
        self.record = record
        self.eval_sets = eval_sets
        self.eval_collator = eval_collator
        model.recompute_logits = self.is_sharded
        self.model_accepts_loss_kwargs = True  # the loss is divided here, by the divisor of the whole step

    @property
    def token_predictor(self) -> TokenPredictor:
        """The model without DDP's, FSDP's or DeepSpeed's wrapper."""
        return self.wrapped_model

    # ----------------------------------------------- training -----------------------------------------------

    def prepare_batches(self, inputs: dict[str, Any]) -> list[TokenBatch]:
        """A micro-batch as the model will get it; for stages whose attention depends on the step."""
        return inputs["batches"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """This micro-batch's part of the step's loss, with its graph."""
        batches = self._equal_forwards(self.prepare_batches(inputs))
        total = model(batches).loss
        divisor = inputs["divisor"] if num_items_in_batch is None else num_items_in_batch
        # Engines average over ranks; without a label in the whole step the sum, too, is 0.
        loss = total * self.accelerator.num_processes / divisor.to(total).clamp(min=1e-6)
        return (loss, {}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """The divisor of the step: of all its micro-batches, on all ranks."""
        if not batch_samples:
            return None
        divisor = torch.stack([batch["divisor"] for batch in batch_samples]).sum().to(device)
        if self.accelerator.num_processes > 1:
            dist.all_reduce(divisor)
        return divisor

    def _equal_forwards(self, batches: list[TokenBatch]) -> list[TokenBatch]:
        """Forwards of nothing where another rank runs more of them."""
        if not self.is_in_lockstep or self.accelerator.num_processes == 1:
            return batches
        count = torch.tensor(len(batches), device=self.args.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return [*batches, *(_without_labels(batches[0]) for _ in range(int(count) - len(batches)))]

    # ---------------------------------------------- evaluation ----------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of `eval_sets`, the same ones at every step and on every number of ranks."""
        if self.optimizer is not None:
            self.optimizer.eval()
        metrics: dict[str, float] = {}
        was_training = self.model.training
        self.model.eval()
        for name, rows in self.eval_sets.items():
            found = self.summarize(self._sums(rows))
            metrics |= {f"{metric_key_prefix}_{f'{name}_' if name else ''}{key}": each for key, each in found.items()}
        self.model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, batches: list[TokenBatch], divisor: float) -> Tensor:
        """What a batch adds to the sums behind the metrics, [k] in float64."""
        found = self.model(batches, with_correct=True)
        shift = self.token_predictor.shift
        weights = torch.cat([batch.scored_weights(shift) for batch in batches]).to(found.losses)  # [N]
        loss = (found.losses.double() * weights).sum().item()
        return torch.tensor([loss, divisor, float(found.correct.sum()), len(found.correct)], dtype=torch.float64)

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Sums over all rows → metrics."""
        loss, divisor, correct, labels = sums.tolist()
        if labels == 0:
            raise ValueError("`eval_dataset`: none of its tokens is hidden, so nothing is predicted: use more text.")
        return {"loss": loss / divisor, "accuracy": correct / labels}

    @torch.no_grad()
    def _sums(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Ranks take the batches in turn, each as many."""
        per_batch, ranks, rank = self.args.per_device_eval_batch_size, self.args.world_size, self.args.process_index
        total = torch.zeros(1, dtype=torch.float64)
        for start in range(0, len(rows), per_batch * ranks):
            places = range(start, min(start + per_batch * ranks, len(rows)))
            own = places[rank * per_batch : (rank + 1) * per_batch]
            chosen = [DocumentRow.of_example(rows[place], epoch=0, place=place) for place in own]
            inputs = self.eval_collator(chosen or [DocumentRow.of_example(rows[start], 0, start).as_filler()])
            batches = self._equal_forwards(inputs["batches"])
            total = total + self.score(batches, float(inputs["divisor"]))
        if ranks > 1:
            total = total.to(self.args.device)
            dist.all_reduce(total)
        return total.cpu()

    # --------------------------------------------- checkpoints ----------------------------------------------

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """An adapter or all weights as the host and PEFT load them, and what the mask token is."""
        model = self.token_predictor
        save_backbone(model.backbone, folder, state_dict)
        vector = find_mask_embedding(model.backbone, part_of_state_dict(state_dict, "backbone."))
        if vector is not None:
            save_mask_embedding(folder, vector)
        self.record.save(folder)

    def read_checkpoint(self, folder: Path) -> None:
        load_backbone_weights(self.token_predictor.backbone, folder)
        saved = load_mask_embedding([folder])
        if saved is not None:
            embedding = self.token_predictor.decoder.get_input_embeddings()
            with torch.no_grad():
                getattr(embedding, PARAMETER).copy_(saved)


def _without_labels(batch: TokenBatch) -> TokenBatch:
    """A forward as short as can be, in which nothing is predicted."""
    row = PackedBatch(batch.packed.token_ids[:1], lengths=(1,), text_indices=(0,))
    return TokenBatch(row, labels=torch.full((1,), NO_LABEL))


def eval_sets_of(data: Any) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows to evaluate on, by name; those of a stream are few, and held."""
    if data is None:
        return {}
    named = dict(data) if isinstance(data, Mapping) else {"": data}
    return {name: rows if hasattr(rows, "__len__") else list(itertools.chain(rows)) for name, rows in named.items()}
