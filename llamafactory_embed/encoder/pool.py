"""Several processes that embed for one `Encoder`, each with a copy of its checkpoint on its device."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch


if TYPE_CHECKING:
    from .encoder import Encoder, Role


CHUNK = 1024  # most texts given to a process at a time
CHUNKS_AHEAD = 2  # chunks waiting for each process, so that it need not wait for the next
FAREWELL = 2.0  # seconds that the processes have to end by themselves


@dataclass(frozen=True)
class Chunk:
    """Neighbouring texts of one call, the first of which has the number `start`."""

    call: int
    start: int
    texts: list[str]
    instructions: list[str] | str
    role: Role


@dataclass(frozen=True)
class Embedded:
    """The result of a chunk: embeddings [n, d], or an error."""

    call: int
    start: int
    embeddings: np.ndarray | None
    error: str = ""


class EncoderPool:
    """Starts a process for each device; they load the checkpoint once and stay until `close`, or until the process
    that started them has ended.

    How texts are dealt out does not change the result: each embedding is written to the place of its text.
    """

    def __init__(self, encoder_arguments: dict[str, Any], devices: Sequence[str]) -> None:
        """`encoder_arguments` are those of each process's Encoder, but for its device."""
        self.devices = tuple(devices)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._chunks: Any = context.Queue()
        # One for each process: the end of a process is the end of its results, also in the middle of one.
        pipes = [context.Pipe(duplex=False) for _ in devices]
        self._results: list[Connection] = [reader for reader, _ in pipes]
        sharing_cpu = sum(torch.device(device).type == "cpu" for device in devices)
        threads = max(1, (os.cpu_count() or 1) // max(1, sharing_cpu))
        self._processes = [
            context.Process(
                target=_work,
                args=(encoder_arguments, device, threads, self._chunks, writer),
                daemon=True,
                name=f"encoder on {device}",
            )
            for device, (_, writer) in zip(devices, pipes, strict=True)
        ]
        self._call = 0
        self.close = weakref.finalize(self, _stop, self._processes, self._chunks)
        for process, (_, writer) in zip(self._processes, pipes, strict=True):
            process.start()
            writer.close()

    @property
    def is_alive(self) -> bool:
        """Whether all processes are running."""
        return self.close.alive and all(process.is_alive() for process in self._processes)

    def embed(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Embeddings of some of the texts at a time, neither cut nor normalized, with the texts' positions."""
        self._call += 1  # results of a call that was broken off are still in the queue
        ahead = CHUNKS_AHEAD * len(self._processes)
        size = max(1, min(CHUNK, -(-len(texts) // ahead)))
        parts = (range(start, min(start + size, len(texts))) for start in range(0, len(texts), size))
        missing = sum(self._send_next(parts, texts, instructions, role) for _ in range(ahead))
        while missing:
            result = self._next_result()
            if result.call != self._call:
                continue
            if result.embeddings is None:
                raise RuntimeError(f"A process of the Encoder failed:\n{result.error}")
            missing += self._send_next(parts, texts, instructions, role) - 1
            yield range(result.start, result.start + len(result.embeddings)), torch.from_numpy(result.embeddings)

    def _send_next(
        self, parts: Iterator[range], texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> int:
        """Hand out the next part, if there is one, and say how many that were."""
        for positions in parts:
            own = instructions if isinstance(instructions, str) else [instructions[index] for index in positions]
            self._chunks.put(Chunk(self._call, positions.start, [texts[index] for index in positions], own, role))
            return 1
        return 0

    def _next_result(self) -> Embedded:
        ready = cast(Connection, wait(self._results)[0])
        try:
            return ready.recv()
        except (EOFError, OSError):
            ended = self._processes[self._results.index(ready)]
            ended.join(FAREWELL)
            self.close()
            raise RuntimeError(
                f"The process of the {ended.name} ended with code {ended.exitcode}: it may have run out of memory, or "
                "the script that called `encode` lacks an `if __name__ == '__main__':`."
            ) from None


def _stop(processes: Sequence[Any], chunks: Queue[Any]) -> None:
    for _ in processes:
        chunks.put(None)
    end = time.monotonic() + FAREWELL
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.terminate()
            process.join()
    chunks.cancel_join_thread()  # nobody reads what is left


def _work(
    encoder_arguments: dict[str, Any], device: str, threads: int, chunks: Queue[Any], results: Connection
) -> None:
    """A process: load, then embed chunk after chunk."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    encoder: Encoder | None = None
    while (chunk := chunks.get()) is not None:
        try:
            if encoder is None:
                encoder = _load(encoder_arguments, device)
            results.send(Embedded(chunk.call, chunk.start, _embed(encoder, chunk)))
        except Exception:
            results.send(Embedded(chunk.call, chunk.start, None, traceback.format_exc()))


def _end_with_parent() -> None:
    """A caller that a signal has killed sends no farewell, and the queue never closes: its other end is ours, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # wherever the other threads are


def _load(encoder_arguments: dict[str, Any], device: str) -> Encoder:
    from .encoder import Encoder

    return Encoder(**encoder_arguments, device=device)


def _embed(encoder: Encoder, chunk: Chunk) -> np.ndarray:
    embeddings = np.empty((len(chunk.texts), encoder.dimension), dtype=np.float32)
    for indices, part in encoder.embed(chunk.texts, chunk.instructions, chunk.role):
        embeddings[list(indices)] = part.float().cpu().numpy()
    return embeddings
