"""The training step of stages that predict masked tokens, and their evaluation on fixed masks."""

from __future__ import annotations

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
from ..model.token_predictor import TokenBatch, TokenPredictor, pack_again
from .trainer import WrappedModelTrainer


class TokenTrainer(WrappedModelTrainer):
    """The host's trainer around a `TokenPredictor`. A step's loss is the weighted sum of the losses of all its labels,
    divided by what its rows count."""

    sums_losses = True

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
        total = model(self._equal_forwards(self.prepare_batches(inputs))).loss
        loss = self.part_of_step_loss(total, inputs["loss_count"], num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def step_in_forwards(
        self, model: nn.Module, inputs: dict[str, Any], count_of_step: Tensor | None, max_tokens: int
    ) -> Tensor:
        """The parts of a sum, each with its own backward."""
        assert self.token_budget is not None
        loss = torch.zeros((), device=self.args.device)
        with self.token_budget.agreement():
            for batch in pack_again(self.prepare_batches(inputs), max_tokens):
                with self.compute_loss_context_manager():
                    part = self.part_of_step_loss(model([batch]).loss, inputs["loss_count"], count_of_step)
                self.accelerator.backward(part)
                loss += part.detach()
        return loss

    def text_lengths(self, inputs: dict[str, Any]) -> Sequence[int]:
        return [length for batch in inputs["batches"] for length in batch.packed.lengths]

    def memory_advice(self) -> str:
        """Losses are summed, so that smaller micro-batches train the same."""
        smaller = super().memory_advice()
        can_run_again = self.token_budget is None and not self.is_in_lockstep
        return f"set `auto_token_budget: true`; or {smaller}" if can_run_again else smaller

    def loss_count(self, inputs: dict[str, Any]) -> Tensor:
        return inputs["loss_count"]

    def add_forwards(self, forwards: list[TokenBatch], count: int) -> list[TokenBatch]:
        """Those added predict nothing."""
        return [*forwards, *[forwards[0].shortest_forward()] * (count - len(forwards))]

    # ---------------------------------------------- evaluation ----------------------------------------------

    def evaluation_metrics(self) -> dict[str, float]:
        """The metrics of `eval_sets`, the same ones at every step and on every number of ranks."""
        metrics: dict[str, float] = {}
        for name, rows in self.eval_sets.items():
            prefix = f"{name}_" if name else ""
            metrics |= {f"{prefix}{key}": value for key, value in self.summarize(self._sums(rows)).items()}
        return metrics

    def score(self, batches: list[TokenBatch], loss_count: float) -> Tensor:
        """What a batch adds to the sums that the metrics are made of, [k] in float64."""
        scores = self.model(batches, with_correct=True)
        shift = self.token_predictor.shift
        weights = torch.cat([batch.scored_weights(shift) for batch in batches]).to(scores.losses)  # [N]
        loss = (scores.losses.double() * weights).sum().item()
        return torch.tensor([loss, loss_count, float(scores.correct.sum()), len(scores.correct)], dtype=torch.float64)

    def summarize(self, sums: Tensor) -> dict[str, float]:
        """Sums over all rows → metrics."""
        loss, loss_count, correct, labels = sums.tolist()
        if labels == 0:
            raise ValueError("`eval_dataset`: none of its tokens is hidden, so nothing is predicted: use more text.")
        return {"loss": loss / loss_count, "accuracy": correct / labels}

    @torch.no_grad()
    def _sums(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The sums over all rows. Ranks take the batches in turn, each the same number."""
        per_batch, ranks, rank = self.args.per_device_eval_batch_size, self.args.world_size, self.args.process_index
        total = torch.zeros(1, dtype=torch.float64)
        for start in range(0, len(rows), per_batch * ranks):
            places = range(start, min(start + per_batch * ranks, len(rows)))
            places = places[rank * per_batch : (rank + 1) * per_batch]
            batch = [DocumentRow.of_example(rows[place], epoch=0, place=place) for place in places]
            inputs = self.eval_collator(batch or [DocumentRow.of_example(rows[start], 0, start).as_filler()])
            batches = self._equal_forwards(inputs["batches"])
            total = total + self.score(batches, float(inputs["loss_count"]))
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


def eval_sets_of(data: Any) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows to evaluate on, by name; those of a stream are few, and held."""
    if data is None:
        return {}
    named = dict(data) if isinstance(data, Mapping) else {"": data}
    return {name: rows if hasattr(rows, "__len__") else list(rows) for name, rows in named.items()}


def plotted_metrics(eval_sets: Mapping[str, Any], metric: str) -> list[str]:
    """What `plot_loss` draws: the loss, and one metric of every set."""
    return ["loss", *(f"eval_{f'{name}_' if name else ''}{metric}" for name in eval_sets)]
