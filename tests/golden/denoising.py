"""What the golden tests of the samplers share: formula networks, recorded draws, the history of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_embed.model import families  # noqa: F401  registers Dream and LLaDA
from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.loop import Frame
from llamafactory_embed.sampling.network import LanguageModelNetwork, Network
from tests.golden.case_files import GoldenCase


class FormulaNetwork:
    """The network of README-diffusion.md that is a function of the tokens."""

    waits_for_blocks = False
    rows_per_chunk = 5

    def __init__(self, model: str, vocabulary: int, shift: bool) -> None:
        self.sees_tokens = model == "formula_B"
        self.vocabulary = vocabulary
        self.shift = shift

    def head(self, states: Tensor) -> Tensor:
        return states

    def states(self, tokens: Tensor, real: Tensor, queried: Tensor) -> Tensor:
        raw = self.all_logits(tokens)
        if self.shift:
            raw = torch.cat([raw[:, :1], raw[:, :-1]], dim=1)
        return raw[queried]

    def all_logits(self, tokens: Tensor) -> Tensor:
        rows, length = tokens.shape
        at = torch.arange(length, dtype=torch.float64)[:, None]
        entry = torch.arange(self.vocabulary, dtype=torch.float64)
        values = (3 * (1.7 * (7 * at + entry)).sin()).expand(rows, -1, -1)
        if self.sees_tokens:
            sums = (tokens.double() * torch.arange(1, length + 1)).sum(dim=-1)[:, None, None]
            values = values + 2 * (0.9 * entry + 0.5 * at + 0.013 * sums).cos()
        return values.float()

    def enter_block(self, start: int, stop: int) -> None:
        pass

    def keep_rows(self, kept: Tensor) -> None:
        pass


def left_padded(prompts: Sequence[Sequence[int]], attention_mask: Any, new_tokens: int, mask_token: int) -> Canvas:
    """A case's prompts without their padding, which our canvas puts there itself."""
    padding = attention_mask or [[1] * len(row) for row in prompts]
    real = [list(itertools.compress(row, mask)) for row, mask in zip(prompts, padding, strict=True)]
    return Canvas.of_prompts(real, new_tokens, mask_token)


def network_of(case: GoldenCase, sub: dict[str, Any], folder: Path, shift: bool) -> Network:
    """A formula, or the model whose weights the whole case names."""
    if sub["model"].startswith("formula"):
        return FormulaNetwork(sub["model"], sub["formula_vocab"], shift)
    copied = case.copy_model(folder / "model", case.model_folder)
    return LanguageModelNetwork(AutoModelForCausalLM.from_pretrained(copied).eval(), shift=shift)


class RecordedDraws:
    """Uniform numbers of each step, for all rows and columns."""

    def __init__(self, per_step: Sequence[Tensor]) -> None:
        self.per_step = iter(per_step)
        self.now = torch.empty(0)

    def positions(self, rows: Sequence[int]) -> Tensor:
        self.now = next(self.per_step)
        return self.now[list(rows)]

    def tokens(self, rows: Sequence[int]) -> Tensor:
        raise AssertionError("greedy sampling draws no tokens")


class NoDraws:
    """For runs without chance."""

    def positions(self, rows: Sequence[int]) -> Tensor:
        raise AssertionError("this algorithm leaves nothing to chance")

    tokens = positions


class History:
    """The tokens after each step; a row that has left the batch keeps its last ones."""

    def __init__(self, canvas: Canvas) -> None:
        self.now = canvas.tokens.clone()
        self.steps: list[list[list[int]]] = []

    def __call__(self, frame: Frame) -> None:
        self.now = self.now.clone()
        self.now[list(frame.rows)] = frame.canvas.tokens
        self.steps.append(self.now.tolist())

    def padded_to(self, steps: int) -> list[list[list[int]]]:
        """As many steps as the original ran, which goes on when all is said."""
        last = self.steps[-1] if self.steps else self.now.tolist()  # a row that was given as a whole
        return self.steps + [last] * (steps - len(self.steps))
