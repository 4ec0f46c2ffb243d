"""A diffusion language model with all that generation needs: what predictions, chat, the command and lm-eval share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attention_patch import SlidingWindow

from ..data.tokenization import find_special_tokens
from ..files import digest
from ..model.token_loss import LanguageModelHead
from .canvas import Canvas
from .loop import Frame, denoise, rows_of_one_cache
from .network import GuidedNetwork, LanguageModelNetwork, Network
from .settings import SamplingSettings


HIDDEN = "░"  # how a masked token is shown


@dataclass(frozen=True)
class Generated:
    """The generated tokens of one text, up to its end."""

    tokens: list[int]
    text: list[int]
    """The whole text, prompt included, without padding."""
    ended: bool
    """Whether an end token came before the room was used up."""


@dataclass
class Sampler:
    """Generates texts. What a text becomes depends on its number and the seed, not on its neighbours."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    settings: SamplingSettings
    mask_token: int
    shift: bool
    end_tokens: tuple[int, ...] = ()
    sliding_window: SlidingWindow = "keep"
    """As in training; a checkpoint with full weights has it in its config.json."""
    forwards: int = 0
    """Forwards of the network so far."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int] | None = None,
        *,
        settings: SamplingSettings | None = None,
        watch: Callable[[Frame], None] | None = None,
    ) -> list[Generated]:
        """Write `max_new_tokens` tokens after each prompt. `numbers` are the texts' numbers in their data set."""
        settings = settings or self.settings
        canvas = Canvas.of_prompts(
            [self.start_of(prompt) for prompt in prompts], settings.max_new_tokens, self.mask_token, self.device
        )
        done = self._denoise(canvas, numbers, settings, watch, self.end_tokens)
        return [self._cut(done.answer(row), done.text(row)) for row in range(len(done))]

    def fill(
        self,
        texts: Sequence[Sequence[int]],
        holes: Sequence[Sequence[bool]],
        numbers: Sequence[int] | None = None,
        *,
        settings: SamplingSettings | None = None,
        watch: Callable[[Frame], None] | None = None,
    ) -> list[Generated]:
        """Fill the holes of texts. An end token ends nothing here: what follows is given."""
        for text, hole in zip(texts, holes, strict=True):
            if not any(hole):
                raise ValueError(f"The text {self.tokenizer.decode(list(text))!r} has no gap to fill.")
        # With a shift a text's first token cannot be predicted from within the text.
        starts = [self.start_of([]) if self.shift and hole[0] else [] for hole in holes]
        texts = [[*start, *text] for start, text in zip(starts, texts, strict=True)]
        holes = [[*[False] * len(start), *hole] for start, hole in zip(starts, holes, strict=True)]
        canvas = Canvas.of_texts(texts, holes, self.mask_token, self.device)
        done = self._denoise(canvas, numbers, settings or self.settings, watch, ())
        return [Generated(done.answer(row), done.text(row), False) for row in range(len(done))]

    def start_of(self, prompt: Sequence[int]) -> list[int]:
        """The prompt, or the tokenizer's BOS if it is empty. A model that predicts with a shift needs a token before
        the first one that it generates: without BOS it is EOS, which ended the document before."""
        if len(prompt) > 0:
            return list(prompt)
        leading = list(find_special_tokens(self.tokenizer, append_eos=False).leading)
        if leading or not self.shift or self.tokenizer.eos_token_id is None:
            return leading
        return [self.tokenizer.eos_token_id]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def show(self, tokens: Sequence[int], masked: Sequence[bool], skip_special_tokens: bool = True) -> str:
        """Text in which ░ stands for each masked token."""
        pieces: list[str] = []
        for is_masked, group in itertools.groupby(zip(tokens, masked, strict=True), key=lambda pair: pair[1]):
            run = [token for token, _ in group]
            pieces.append(HIDDEN * len(run) if is_masked else self.decode(run, skip_special_tokens))
        return "".join(pieces)

    def _denoise(
        self,
        canvas: Canvas,
        numbers: Sequence[int] | None,
        settings: SamplingSettings,
        watch: Callable[[Frame], None] | None,
        end_tokens: Sequence[int],
    ) -> Canvas:
        seeds = [text_seed(settings.seed, number) for number in (numbers or range(len(canvas)))]
        result = canvas.rows(range(len(canvas)))
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in rows_of_one_cache(canvas, settings):
                part = canvas.rows(rows)
                done = denoise(
                    part,
                    self._network(part, settings),
                    settings,
                    SeededDraws([seeds[row] for row in rows], part.generated),
                    banned_tokens=self._never_written(),
                    end_tokens=end_tokens,
                    watch=None if watch is None else _at_rows(rows, watch),
                )
                result.tokens[rows], result.masked[rows] = done.canvas.tokens, done.canvas.masked
                self.forwards += done.forwards
        finally:
            self.model.train(was_training)
        return result

    def _never_written(self) -> set[int]:
        """The mask token, and rows of the embedding matrix that belong to no token."""
        rows = LanguageModelHead.of_model(self.model).vocabulary_size
        return {self.mask_token, *range(len(self.tokenizer), rows)}

    def _network(self, canvas: Canvas, settings: SamplingSettings) -> Network:
        def language_model() -> Network:
            return LanguageModelNetwork(
                self.model,
                shift=self.shift,
                block_size=settings.block_size,
                sliding_window=self.sliding_window,
                cache=settings.cache,
                cache_refresh_steps=settings.cache_refresh_steps,
            )

        if settings.cfg_scale <= 0:
            return language_model()
        return GuidedNetwork(language_model(), language_model(), settings.cfg_scale, canvas.generated, self.mask_token)

    def _cut(self, answer: Sequence[int], text: list[int]) -> Generated:
        """The answer up to the first end token, which is not part of it."""
        for index, token in enumerate(answer):
            if token in self.end_tokens:
                return Generated(list(answer[:index]), text[: len(text) - len(answer) + index], True)
        return Generated(list(answer), text, False)


def _at_rows(rows: Sequence[int], watch: Callable[[Frame], None]) -> Callable[[Frame], None]:
    """A watcher of some rows of a batch that reports them by their places in the whole batch."""
    return lambda frame: watch(Frame([rows[row] for row in frame.rows], frame.canvas))


class SeededDraws:
    """Random numbers that depend on a text's seed alone: not on the batch it is in, nor on the device.

    Each text has its generator, which draws one number for each of the text's generated positions, so that padding,
    which comes from the other texts of a batch, changes nothing.
    """

    def __init__(self, seeds: Sequence[int], generated: Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._generated = generated.cpu()
        self._device = generated.device

    def tokens(self, rows: Sequence[int]) -> Tensor:
        return self._draw(rows)

    def positions(self, rows: Sequence[int]) -> Tensor:
        return self._draw(rows)

    def _draw(self, rows: Sequence[int]) -> Tensor:
        numbers = torch.zeros(len(rows), self._generated.shape[-1])
        for index, row in enumerate(rows):
            generated = self._generated[row]
            numbers[index, generated] = torch.rand(int(generated.sum()), generator=self._generators[row])
        return numbers.to(self._device)


def text_seed(seed: int, number: int) -> int:
    """The seed of a text, from the run's seed and the text's number in its data set."""
    return int.from_bytes(digest(f"{seed}/{number}", size=7), "big")
