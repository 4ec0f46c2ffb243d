"""The denoising loop: from a canvas with holes to a text, whatever the algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .algorithms import ALGORITHMS, Algorithm, Step, choose_positions
from .canvas import Canvas, blocks_from_start, blocks_of, whole_blocks
from .guesses import make_guesses, penalize_repetition
from .network import Network
from .settings import SamplingSettings


class Draws(Protocol):
    """Where a denoising loop gets its uniform numbers from. Tests feed recorded ones in."""

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """One number a position [len(rows), L] for the choice of tokens, in the next step of these rows."""

    def positions(self, rows: Sequence[int]) -> Tensor:
        """The same for the choice of positions."""


@dataclass(frozen=True)
class Frame:
    """What a watcher sees after each step."""

    rows: Sequence[int]  # which texts of the batch are still being denoised
    canvas: Canvas  # theirs


@dataclass
class Denoised:
    """Finished texts, in the order in which they were given."""

    canvas: Canvas
    forwards: int  # of the network, for the whole batch


@torch.inference_mode()
def denoise(
    canvas: Canvas,
    network: Network,
    settings: SamplingSettings,
    draws: Draws,
    *,
    banned_tokens: Collection[int] = (),
    end_tokens: Collection[int] = (),
    watch: Callable[[Frame], None] | None = None,
) -> Denoised:
    """Fill the holes of a canvas.

    Each row goes through blocks and steps independently of the others, so it becomes what it would be alone; only
    under a network that waits for blocks must the rows share columns (`rows_of_one_cache`). A row is finished when no
    mask is left, or when it has one of the `end_tokens` and no mask before it: what follows cannot change what stands,
    so it is filled with that token.
    """
    return _Loop(canvas, network, settings, draws, banned_tokens, end_tokens, watch).run()


class _Loop:
    """The state of one batch. Rows that are finished leave it."""

    def __init__(
        self,
        canvas: Canvas,
        network: Network,
        settings: SamplingSettings,
        draws: Draws,
        banned_tokens: Collection[int],
        end_tokens: Collection[int],
        watch: Callable[[Frame], None] | None,
    ) -> None:
        device = canvas.tokens.device
        self.network, self.settings, self.draws, self.watch = network, settings, draws, watch
        self.algorithm: Algorithm = ALGORITHMS[settings.algorithm]
        self.banned = torch.tensor(sorted(banned_tokens), dtype=torch.long, device=device)
        self.ends = torch.tensor(sorted(end_tokens), dtype=torch.long, device=device)
        self.result = Canvas(canvas.tokens.clone(), canvas.generated, canvas.masked.clone(), canvas.real)
        self.forwards = 0

        # of the rows that are not finished, in this order
        self.rows = list(range(len(canvas)))
        self.canvas = canvas.rows(self.rows)
        self.blocks = block_numbers(canvas, settings)  # [B, L]
        self.block = [0] * len(canvas)
        self.step = [0] * len(canvas)
        counts = (self.blocks.amax(dim=-1) + 1).tolist()
        self.steps = [split_steps(settings.steps, count) for count in counts]  # of each row's blocks
        self.width: list[int] = [0] * len(canvas)

    def run(self) -> Denoised:
        self._leave_finished()
        self._enter_blocks(range(len(self.rows)))
        while self.rows:
            self._one_step()
            if self.watch is not None:
                self.watch(Frame(tuple(self.rows), self.canvas))
            self._next_step()
        return Denoised(self.result, self.forwards)

    # ------------------------------------------------ one step ------------------------------------------------

    def _one_step(self) -> None:
        block = self.blocks == torch.tensor(self.block, device=self.blocks.device).unsqueeze(-1)  # [B, L]
        eligible = block & self.canvas.masked
        at_work = eligible.any(dim=-1).tolist()  # the others wait for them
        if not any(at_work):
            return  # blocks between two gaps
        needs_chance = self.algorithm.needs_chance or self.settings.alg_temp > 0
        step = Step(
            eligible=eligible,
            block=block,
            width=self.width,
            step=self.step,
            steps=[steps[block] for steps, block in zip(self.steps, self.block, strict=True)],
            uniforms=self._draw(self.draws.positions, at_work) if needs_chance else None,
        )
        token_uniforms = self._draw(self.draws.tokens, at_work) if self.settings.temperature > 0 else None
        counts = None
        if self.algorithm.count is not None and not self.settings.is_parallel:
            counts = self.algorithm.count(step)
            if not any(counts):
                return  # a step that reveals nothing needs no forward
        self._reveal(step, counts, token_uniforms)

    def _reveal(self, step: Step, counts: list[int] | None, token_uniforms: Tensor | None) -> None:
        """Guess, and write the guesses of the positions that the algorithm chooses."""
        queried = step.block & (self.canvas.masked | self.algorithm.ranks_revealed)
        guessed, confidence_of_guess = self._guess(queried, token_uniforms)
        confidence = torch.zeros(queried.shape, dtype=torch.float32, device=queried.device)
        confidence[queried] = confidence_of_guess
        revealed = choose_positions(self.algorithm, self.settings, confidence, step, counts)
        tokens = self.canvas.tokens.clone()
        tokens[queried] = guessed
        self.canvas.tokens = torch.where(revealed, tokens, self.canvas.tokens)
        self.canvas.masked = self.canvas.masked & ~revealed

    def _draw(self, source: Callable[[Sequence[int]], Tensor], at_work: Sequence[bool]) -> Tensor:
        """Uniform numbers [B, L]; rows that wait draw none, so that a row's numbers do not depend on the others."""
        rows = [row for row, working in zip(self.rows, at_work, strict=True) if working]
        drawn = source(rows).to(self.canvas.tokens.device)
        numbers = drawn.new_zeros(self.canvas.tokens.shape)
        numbers[torch.tensor(at_work, device=numbers.device)] = drawn
        return numbers

    def _guess(self, queried: Tensor, token_uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
        """The guesses for the queried positions and their confidence, [N] and [N]. Logits exist for a chunk of
        positions at a time."""
        states = self.network.states(self.canvas.tokens, self.canvas.real, queried)
        self.forwards += 1
        rows = queried.nonzero(as_tuple=True)[0]
        uniforms = None if token_uniforms is None else token_uniforms[queried]
        tokens, confidence = [], []
        for start in range(0, len(states), self.network.rows_per_chunk):
            chunk = slice(start, start + self.network.rows_per_chunk)
            logits = self._penalized(self.network.head(states[chunk]).float(), rows[chunk])  # [n, V]
            guesses = make_guesses(
                logits / self.settings.logits_temp,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                top_k=self.settings.top_k,
                uniforms=None if uniforms is None else uniforms[chunk],
                banned=self.banned[self.banned < logits.shape[-1]],
            )
            tokens.append(guesses.tokens)
            if self.algorithm.confidence is None:
                confidence.append(torch.zeros_like(guesses.plain[:, 0]))
            else:
                confidence.append(self.algorithm.confidence(guesses))
        return torch.cat(tokens), torch.cat(confidence)

    def _penalized(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits [n, V] of positions in these rows [n], lowered for tokens that the row contains."""
        if self.settings.repetition_penalty == 1:
            return logits
        present = torch.zeros(len(self.canvas), logits.shape[-1], dtype=torch.bool, device=logits.device)
        revealed = self.canvas.real & ~self.canvas.masked & (self.canvas.tokens < logits.shape[-1])
        present[revealed.nonzero(as_tuple=True)[0], self.canvas.tokens[revealed]] = True
        return penalize_repetition(logits, present[rows], self.settings.repetition_penalty)

    # ------------------------------------------- from step to step --------------------------------------------

    def _next_step(self) -> None:
        self._leave_finished()
        here = torch.tensor(self.block, device=self.blocks.device).unsqueeze(-1)
        done = (~(self.canvas.masked & (self.blocks == here)).any(dim=-1)).tolist()
        self.step = [step + (not is_done) for step, is_done in zip(self.step, done, strict=True)]
        if self.network.waits_for_blocks and not all(done):
            return
        moving = [index for index, is_done in enumerate(done) if is_done]
        for index in moving:
            self.block[index] += 1
        self._enter_blocks(moving)

    def _enter_blocks(self, moving: Collection[int]) -> None:
        """Start the schedule of these rows' new block, and tell a network that waits which columns it changes."""
        if not moving:
            return
        for index in moving:
            self.step[index] = 0
            self.width[index] = int((self.canvas.masked[index] & (self.blocks[index] == self.block[index])).sum())
        if self.network.waits_for_blocks:
            changing = self.blocks == self.block[0]
            if self.settings.block_size is not None:
                changing = whole_blocks(changing, self.canvas.real, self.settings.block_size)
            columns = changing.any(dim=0).nonzero()
            if len(columns) > 0:  # none in a block between two gaps
                self.network.enter_block(int(columns[0]), int(columns[-1]) + 1)

    def _leave_finished(self) -> None:
        """Move finished rows into the result."""
        finished = ~self.canvas.masked.any(dim=-1) | self._ended()
        if not bool(finished.any()):
            return
        indices = finished.nonzero()[:, 0].tolist()
        for index in indices:
            row = self.rows[index]
            self.result.tokens[row] = self.canvas.tokens[index]
            self.result.masked[row] = False
        kept = ~finished
        stay = [index for index in range(len(self.rows)) if index not in set(indices)]
        self.canvas, self.blocks = self.canvas.rows(kept), self.blocks[kept]
        for name in ("rows", "block", "step", "steps", "width"):
            setattr(self, name, [getattr(self, name)[index] for index in stay])
        if stay:
            self.network.keep_rows(kept)

    def _ended(self) -> Tensor:
        """Rows [B] with an end token and no mask before it; what is masked after it becomes that token."""
        canvas = self.canvas
        if len(self.ends) == 0:
            return torch.zeros(len(canvas), dtype=torch.bool, device=canvas.tokens.device)
        columns = torch.arange(canvas.tokens.shape[-1], device=canvas.tokens.device)
        nowhere = canvas.tokens.shape[-1]
        ends = canvas.generated & ~canvas.masked & torch.isin(canvas.tokens, self.ends)
        first_end = torch.where(ends, columns, nowhere).amin(dim=-1)
        first_mask = torch.where(canvas.masked, columns, nowhere).amin(dim=-1)
        ended = first_end < first_mask
        token = canvas.tokens.gather(-1, first_end.clamp(max=nowhere - 1).unsqueeze(-1))
        canvas.tokens = torch.where(ended.unsqueeze(-1) & canvas.masked, token, canvas.tokens)
        return ended


def split_steps(steps: int, blocks: int) -> list[int]:
    """The steps of each block: as even as possible, the first ones longer, and one at least."""
    return [max(1, math.ceil((steps - index) / blocks)) for index in range(blocks)]


def block_numbers(canvas: Canvas, settings: SamplingSettings) -> Tensor:
    """The block number of each generated position, counted from 0 in each row; -1 elsewhere, [B, L]."""
    if settings.block_size is None:
        return blocks_of(canvas.generated, settings.block_length)
    return blocks_from_start(canvas.generated, canvas.real, settings.block_size)


def rows_of_one_cache(canvas: Canvas, settings: SamplingSettings) -> list[list[int]]:
    """The rows of a canvas in groups that can be denoised together.

    A cache keeps what lies outside the columns of a block. If the blocks of two rows lay in different columns, more of
    each row would be computed anew than when it is alone, and it would become another text. Without a cache all rows
    go together, and in block diffusion, where a cache is exact whatever else is computed.
    """
    if settings.cache == "none" or settings.block_size is not None:
        return [list(range(len(canvas)))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, numbers in enumerate(block_numbers(canvas, settings).tolist()):
        groups.setdefault(tuple(numbers), []).append(row)
    return list(groups.values())
