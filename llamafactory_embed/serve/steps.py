"""An answer while it is denoised: the loop works in a thread, its steps arrive in an event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from threading import Event

from ..sampling.loop import Frame
from ..sampling.sampler import Generated, Sampler
from ..sampling.settings import SamplingSettings


class StoppedError(Exception):
    """The client has left."""


@dataclass(frozen=True)
class AnswerStep:
    """An answer after one step, up to its first end token."""

    tokens: list[int | None]  # None: still masked
    is_finished: bool

    @property
    def settled(self) -> list[int]:
        """The tokens before the first mask."""
        settled: list[int] = []
        for token in self.tokens:
            if token is None:
                break
            settled.append(token)
        return settled


async def denoising_steps(
    sampler: Sampler, prompt: Sequence[int], number: int, settings: SamplingSettings
) -> AsyncGenerator[AnswerStep, None]:
    """The answer to a prompt after each step. Closing the generator stops the denoising."""
    steps: queue.Queue[AnswerStep | BaseException] = queue.Queue()
    stopped = Event()

    def watch(frame: Frame) -> None:
        if stopped.is_set():
            raise StoppedError
        steps.put(AnswerStep(_answer_so_far(frame, sampler.end_tokens), is_finished=False))

    def work() -> None:
        try:
            (generated,) = sampler.complete([prompt], [number], settings=settings, watch=watch)
            steps.put(_whole(generated))
        except BaseException as error:  # also after the client has left: a thread may still wait for the next step
            steps.put(error)

    running = asyncio.create_task(asyncio.to_thread(work))
    try:
        while True:
            step = await asyncio.to_thread(steps.get)
            if isinstance(step, BaseException):
                raise step
            yield step
            if step.is_finished:
                break
    finally:
        stopped.set()
        await running


def _answer_so_far(frame: Frame, end_tokens: Sequence[int]) -> list[int | None]:
    canvas = frame.canvas
    answer = canvas.tokens[0].where(~canvas.masked[0], -1)[canvas.generated[0]].tolist()
    end = next((index for index, token in enumerate(answer) if token in end_tokens), len(answer))
    return [None if token < 0 else token for token in answer[:end]]


def _whole(generated: Generated) -> AnswerStep:
    return AnswerStep(list(generated.tokens), is_finished=True)
