"""The training step of `stage: tdro`: the weights of the tasks and the proxy model learn in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....files import whole_file
from ....hparams.tdro import TdroOptions
from ..contrastive.batch import ContrastiveBatch
from ..contrastive.trainer import ContrastiveTrainer
from ..gather import gather, world_size
from .batch import ReferenceFunction, TdroBatch, query_losses
from .history import WeightHistory
from .measure import MeasureAccumulator, robust_loss
from .task_weights import TaskWeights, weight_tables, write_weight_files


STATE_NAME = "task_weights.pt"


class TdroTrainer(ContrastiveTrainer):
    """Measures every task in every update, moves the weights, and trains the proxy on the weighted loss."""

    loss_has_a_state = True  # the weights of the tasks move in it

    options: TdroOptions

    def __init__(
        self,
        *,
        options: TdroOptions,
        weights: TaskWeights,
        tasks: Sequence[str],
        sizes: Sequence[int],
        reference: ReferenceFunction | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(options=options, objective=self._robust_loss, **kwargs)
        self.weights = weights
        self.tasks = tasks
        self.sizes = sizes
        self.reference = reference
        self.measures = MeasureAccumulator(len(tasks), options.tdro_measure, options.tdro_norm)
        folder = Path(self.args.output_dir) if self.is_world_process_zero() else None
        self.history = WeightHistory(tasks, folder)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The reference comes first: no forward of the proxy may wait for its backward meanwhile."""
        if self.reference is not None:
            batch: TdroBatch = inputs["batch"]
            forwards = self._equal_forwards(batch.packed)
            with self.compute_loss_context_manager():
                losses = self.reference(batch, forwards)
            inputs = inputs | {"batch": dataclasses.replace(batch, reference_losses=losses)}
        return super().training_step(model, inputs, num_items_in_batch)

    def _robust_loss(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        """Measure a micro-batch, move the weights if it completes the update, and weight its losses with them: as in
        tDRO, only the last micro-batch of an update sees the new weights."""
        assert isinstance(batch, TdroBatch)
        losses = query_losses(embeddings, batch, self.options)  # [B]
        tasks = batch.task_indices.to(losses.device)  # [B]
        all_tasks = gather(tasks)
        reference = None if batch.reference_losses is None else gather(batch.reference_losses.to(losses.device))
        self.measures.add(gather(losses.detach()), reference, all_tasks)
        if self.accelerator.sync_gradients:
            self._update_weights()
        weights = self.weights.current.to(losses)
        # DDP averages gradients over ranks, and each has a part of the sum.
        return world_size() * robust_loss(losses, tasks, weights, all_tasks)

    def _update_weights(self) -> None:
        measure = self.measures.finish()
        rate = self.weights.update(measure.measures, self.state.max_steps)
        self.history.add(self.weights.updates, rate, self.weights.current, measure)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add weight, loss and measure of every task since the entry before to the proxy's loss."""
        if "loss" in logs:
            steps = [entry["step"] for entry in self.state.log_history if "loss" in entry]
            logs |= self.history.means_after(steps[-1] if steps else 0)
        super().log(logs, start_time)

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        super().write_checkpoint(folder, state_dict)
        tables = weight_tables(self.tasks, self.sizes, self.weights, self.options.tdro_top_percents)
        write_weight_files(folder, tables)
        self.history.save(folder)
        with whole_file(folder / STATE_NAME) as temporary:
            about = {"tasks": list(self.tasks), "history": self.history.check_sum()}
            torch.save({**about, **self.weights.state_dict()}, temporary)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, STATE_NAME)
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint: {checkpoint}` is not a checkpoint of `stage: tdro`: it has no {path.name}."
            )
        state = read_state(path)
        if state["tasks"] != list(self.tasks):
            raise ValueError(
                f"`resume_from_checkpoint: {checkpoint}` has weights for {', '.join(state['tasks'])}, and the recipe "
                f"has the tasks {', '.join(self.tasks)}: resume with the same `dataset`."
            )
        self.weights.load_state_dict(state)
        self.history.load(Path(checkpoint), state["updates"], state.get("history"))


def read_state(path: Path) -> dict[str, Any]:
    """The weights of a checkpoint, if they are what `write_checkpoint` writes."""
    try:
        state = torch.load(path, weights_only=True)
        shapes = {tuple(state[name].shape) for name in ("current", "moving_average", "mean", "log_weights")}
        is_whole = (
            shapes == {(len(state["tasks"]),)} and state["updates"] >= 0 and "param_groups" in state["optimizer"]
        )
    except Exception as error:  # bytes that are no pickle make the unpickler fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is damaged ({reason}): go on from the checkpoint before.") from error
    if not is_whole:
        raise ValueError(f"{path} holds no weights of tasks: go on from the checkpoint before.")
    return state
