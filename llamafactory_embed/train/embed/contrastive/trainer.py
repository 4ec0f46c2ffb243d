"""The training step of `stage: contrastive`, and retrieval as its evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn

from ....data.retrieval.evalset import RetrievalEval
from ....encoder.encoder import Encoder
from ....evaluation.in_training import evaluate_retrieval
from ....hparams.contrastive import ComparisonOptions
from ....hparams.embedding import Precision
from ....hparams.run import TokenBudgetOptions
from ....model.packed import PackedBatch, cut_batch
from ..grad_cache import cached_backward, split_batches
from ..trainer import EmbeddingTrainer
from .batch import ContrastiveBatch
from .objective import LossCurves
from .projection import TeacherProjection
from .quantizer import EmbeddingQuantizer


PROJECTION_NAME = "teacher_projection.safetensors"

Objective = Callable[[Tensor, ContrastiveBatch], Tensor]
"""The loss of one micro-batch as a function of its embeddings [2B + B*K, d]; called once in every micro-batch."""


class ContrastiveTrainer(EmbeddingTrainer):
    """The host's trainer with plain steps or GradCache's; `evaluate` searches the held-out tasks."""

    def __init__(
        self,
        *,
        options: ComparisonOptions,
        objective: Objective,
        retrieval_evals: Sequence[RetrievalEval],
        curves: LossCurves | None = None,
        projection: TeacherProjection | None = None,
        quantizer: EmbeddingQuantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.curves = curves
        self.projection = projection
        self.quantizer = quantizer
        self.objective = objective
        self.retrieval_evals = retrieval_evals

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The loss of one batch, with its graph."""
        batch: ContrastiveBatch = inputs["batch"]
        loss = self._checked(self.objective(model(self._equal_forwards(batch.packed)), batch))
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's own step, or GradCache's."""
        if self.options.grad_cache_tokens is None or self.token_budget is not None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self.optimizer.train()  # for schedule-free optimizers
        return self._cached_step(model, inputs["batch"], self._equal_forwards(inputs["batch"].packed), nullcontext)

    def step_in_forwards(
        self, model: nn.Module, inputs: dict[str, Any], count_of_step: Tensor | None, max_tokens: int
    ) -> Tensor:
        """GradCache's step: the loss sees all embeddings, and a graph is that of one forward."""
        assert self.token_budget is not None
        batch: ContrastiveBatch = inputs["batch"]
        chunks = cut_batch(batch.texts, max_tokens)
        return self._cached_step(model, batch, chunks, self.token_budget.agreement)

    def _cached_step(
        self,
        model: nn.Module,
        batch: ContrastiveBatch,
        chunks: Sequence[PackedBatch],
        agreement: Callable[[], AbstractContextManager[None]],
    ) -> Tensor:
        steps = self.current_gradient_accumulation_steps

        def embed(chunks: Sequence[PackedBatch]) -> Tensor:
            with self.compute_loss_context_manager():
                return model(chunks)

        return cached_backward(
            embed,
            chunks,
            lambda embeddings: self._checked(self.objective(embeddings, batch)) / steps,
            self._backward,
            device=self.args.device,
            no_sync=lambda: self._no_sync(model),
            vectors_each=batch.vectors_each,
            agreement=agreement,
        )

    @property
    def remembered(self) -> Sequence[object]:
        return [each for each in (self.curves, self.projection, self.quantizer) if each is not None]

    def text_lengths(self, inputs: dict[str, Any]) -> Sequence[int]:
        return inputs["batch"].texts.lengths

    def memory_advice(self) -> str:
        """Rows are compared with one another, so that the batch stays whole."""
        tokens = [sum(self.text_lengths(inputs)) for inputs in self.batches_of_step]
        half = min(self.data_collator.max_tokens, max(tokens, default=1)) // 2
        if self.token_budget is not None or half < 1:
            return super().memory_advice()
        has_option = isinstance(self.options, TokenBudgetOptions) and not self.is_in_lockstep
        return f"set `grad_cache_tokens: {half}`" + (" or `auto_token_budget: true`" if has_option else "")

    def evaluation_metrics(self) -> dict[str, float]:
        """nDCG@10, MRR@10 and recall of every held-out task and their mean, also in the precision that is trained."""
        encoder = Encoder(self.embedding_model, self.processing_class)
        precision: Precision = "float32"
        if self.quantizer is not None and self.quantizer.ranges is not None:  # which are there after the first step
            encoder.ranges, precision = self.quantizer.ranges, self.quantizer.precision
        return evaluate_retrieval(
            encoder, self.retrieval_evals, share_over_ranks=not self.is_sharded, precision=precision
        )

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """Embeddings can be stored by the ranges that they were trained with."""
        super().write_checkpoint(folder, state_dict)
        if self.quantizer is not None:
            self.quantizer.save(folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss of each task since the entry before."""
        if "loss" in logs and self.curves is not None:
            logs |= self.curves.take_means()
        super().log(logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.projection is not None and self.is_world_process_zero():
            self.projection.save(Path(output_dir, PROJECTION_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.projection is not None and checkpoint is not None:
            self.projection.load(Path(checkpoint, PROJECTION_NAME), self.args.device)
        if self.quantizer is not None and checkpoint is not None:
            self.quantizer.load(Path(checkpoint), self.args.device)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.quantizer is not None:
            self.quantizer.load(Path(self.state.best_model_checkpoint), self.args.device)

    def _backward(self, loss: Tensor) -> None:
        kwargs = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        self.accelerator.backward(loss, **kwargs)

    def _no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep the engine from averaging gradients, or from stepping, before the last chunk."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self._no_boundary()
        if self.is_fsdp_enabled:
            return nullcontext()  # without averaging, each rank would hold the gradients of the whole model
        return self.accelerator.no_sync(model)

    @contextmanager
    def _no_boundary(self) -> Iterator[None]:
        state = self.accelerator.gradient_state
        is_boundary = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(is_boundary)

    def add_forwards(self, forwards: list[PackedBatch], count: int) -> list[PackedBatch]:
        """The same texts in smaller rows."""
        return split_batches(forwards, count)

    def _checked(self, loss: Tensor) -> Tensor:
        """Stop at the first step, not after a day, if the loss is not a number."""
        if self.state.global_step == 0 and not math.isfinite(value := float(loss.detach())):
            precision = "`fp16: true`" if self.args.fp16 else "this model"
            raise ValueError(
                f"The loss of the first step is {value}: `loss_temperature: {self.options.loss_temperature}` may be "
                f"too small for {precision}; raise it or use `bf16: true`."
            )
        return loss
