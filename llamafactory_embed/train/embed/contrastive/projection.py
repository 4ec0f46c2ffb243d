"""A linear map from embeddings to a teacher's vectors, which learns beside the model and is not served with it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ....files import whole_file
from ....hparams.contrastive import ContrastiveOptions
from ....model.tensor_files import load_safetensors
from ..gather import gather, world_size
from ..losses.rows import EmbeddedRows
from ..losses.vectors import taught_texts, vector_distances


STATE = "adam."


class TeacherProjection:
    """The map and its own optimizer (Adam).

    It takes its step when the loss is asked for, with the embeddings as they are, and the model's gradient flows
    through the map as it was before. So it learns in the same way under every engine and under GradCache, which know
    the model's parameters only; ranks average its gradient, and hold the same map.
    """

    def __init__(self, learning_rate: float, seed: int = 42) -> None:
        self.learning_rate = learning_rate
        self.seed = seed
        self.weight: Tensor | None = None  # [d', d]
        self._optimizer: torch.optim.Adam | None = None

    @classmethod
    def of(cls, options: ContrastiveOptions, learning_rate: float) -> TeacherProjection | None:
        """The map of a recipe that asks for one; `learning_rate` is the recipe's."""
        if not options.teacher_projection:
            return None
        return cls(options.teacher_projection_lr or learning_rate)

    def distance(self, rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
        """The mean distance of a row's texts to the teacher's vectors after the map, [B]; the map learns from it."""
        assert rows.teacher_vectors is not None
        texts, vectors = taught_texts(rows), rows.teacher_vectors
        weight = self._weight_for(texts, vectors)
        before = weight.detach().clone()
        own = vector_distances(texts.detach() @ weight.T, vectors, options.vector_distance).mean()
        self._step(*torch.autograd.grad(own, weight))
        return vector_distances(texts @ before.T, vectors, options.vector_distance).mean(dim=1)

    def _weight_for(self, texts: Tensor, vectors: Tensor) -> Tensor:
        size, target = texts.shape[-1], vectors.shape[-1]
        if self.weight is None:
            generator = torch.Generator().manual_seed(self.seed)
            weight = torch.randn(target, size, generator=generator) / size**0.5
            self._start(weight.to(texts.device))
        assert self.weight is not None
        if self.weight.shape != (target, size):
            raise ValueError(
                f"`teacher_projection` learns one map, here from {self.weight.shape[1]} to {self.weight.shape[0]} "
                f"numbers, and a task brings vectors of {target}: use one teacher for all tasks."
            )
        return self.weight

    def _start(self, weight: Tensor) -> torch.optim.Adam:
        self.weight = weight.requires_grad_()
        self._optimizer = torch.optim.Adam([self.weight], lr=self.learning_rate)
        return self._optimizer

    def _step(self, gradient: Tensor) -> None:
        assert self.weight is not None
        assert self._optimizer is not None
        self.weight.grad = gather(gradient.unsqueeze(0)).mean(dim=0) if world_size() > 1 else gradient
        self._optimizer.step()
        self.weight.grad = None

    # ------------------------------------------------- checkpoints ----------------------------------------------

    def save(self, path: Path) -> None:
        """Write the map and its optimizer, to go on with it."""
        if self.weight is None or self._optimizer is None:
            return
        state = {f"{STATE}{name}": each.detach().cpu() for name, each in self._optimizer.state[self.weight].items()}
        with whole_file(path) as temporary:
            save_file({"weight": self.weight.detach().cpu().contiguous(), **state}, temporary)

    def load(self, path: Path, device: torch.device) -> None:
        """Go on with a map that `save` wrote; there is none before the first batch with vectors."""
        if not path.is_file():
            return
        tensors = load_safetensors(path)
        optimizer = self._start(tensors["weight"].to(device))
        assert self.weight is not None
        optimizer.state[self.weight] = {  # Adam counts its steps on the CPU
            name.removeprefix(STATE): each if name == f"{STATE}step" else each.to(device)
            for name, each in tensors.items()
            if name.startswith(STATE)
        }
