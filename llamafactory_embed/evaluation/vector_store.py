"""Embeddings on disk by model, prompt and text: nothing is embedded twice, nor kept in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..files import digest, write_json


KEY_SIZE = 16  # bytes of a text's digest
KEYS, VECTORS, PROMPT, LOCK = "keys.bin", "vectors.bin", "prompt.json", "lock"


class VectorStore:
    """The vectors of texts under one prompt: two files that only grow, one of digests and one of float32 rows.

    Vectors are written before the digests that name them, so a crash leaves a valid store with some unnamed bytes at
    its end, which the next run cuts off.
    """

    def __init__(self, folder: Path, dimension: int, about: dict[str, str]) -> None:
        """`about` tells people which prompt the folder, named by a digest, belongs to."""
        self.folder = folder
        self.dimension = dimension
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"`vectors`: another run is writing to {folder}; wait for it, or name another folder."
            ) from None
        write_json(folder / PROMPT, about)
        self._count = self._cut_off_unnamed_bytes()
        self._rows_of = DigestIndex()
        self._rows_of.add(np.fromfile(folder / KEYS, dtype=np.uint64).reshape(-1, 2))

    @property
    def vectors(self) -> np.ndarray:
        """All vectors [n, d], memory-mapped."""
        if self._count == 0:
            return np.empty((0, self.dimension), dtype=np.float32)
        shape = (self._count, self.dimension)
        return np.memmap(self.folder / VECTORS, dtype=np.float32, mode="r", shape=shape)

    def rows(
        self, texts: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray], window: int, title: str = "Encoding"
    ) -> np.ndarray:
        """The row of each text [N]; missing ones are embedded, `window` of them at a time."""
        keys = digest_texts(texts)
        rows = self._rows_of.find(keys)
        first_with_key: dict[bytes, int] = {}
        for index in np.flatnonzero(rows < 0):
            first_with_key.setdefault(keys[index].tobytes(), int(index))
        missing = list(first_with_key.values())
        with tqdm(total=len(missing), desc=title, disable=not missing, leave=False) as progress:
            for start in range(0, len(missing), window):
                part = missing[start : start + window]
                self._append(keys[part], embed([texts[index] for index in part]))
                progress.update(len(part))
        return self._rows_of.find(keys) if missing else rows

    def close(self) -> None:
        """Let another run write to the folder."""
        self._lock.release()

    def _append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        if not np.isfinite(vectors).all():
            raise ValueError("The model's embeddings hold nan or inf, so nothing can be judged.")
        for name, content in ((VECTORS, np.ascontiguousarray(vectors, dtype=np.float32)), (KEYS, keys)):
            with open(self.folder / name, "ab") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self._count += len(keys)
        self._rows_of.add(keys)

    def _cut_off_unnamed_bytes(self) -> int:
        sizes = {KEYS: KEY_SIZE, VECTORS: 4 * self.dimension}
        for name in sizes:
            (self.folder / name).touch()
        count = min((self.folder / name).stat().st_size // size for name, size in sizes.items())
        for name, size in sizes.items():
            os.truncate(self.folder / name, count * size)
        return count


class DigestIndex:
    """The rows of digests, which come in portions and are numbered as they come.

    Digests lie in sorted runs. A run is merged with the one before it as soon as it is as large, so that there are few
    runs, and each digest is sorted again only when their number has doubled.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # digests [n, 2] by their first half, and their rows [n]
        self._count = 0

    def add(self, digests: np.ndarray) -> None:
        """The next digests [n, 2]."""
        if len(digests) == 0:
            return
        rows = np.arange(self._count, self._count + len(digests))
        self._count += len(digests)
        while self._runs and len(self._runs[-1][0]) <= len(digests):
            earlier, earlier_rows = self._runs.pop()
            digests, rows = np.concatenate([earlier, digests]), np.concatenate([earlier_rows, rows])
        order = digests[:, 0].argsort(kind="stable")
        self._runs.append((digests[order], rows[order]))

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Their rows [N], -1 for missing ones. Of two different texts whose digests agree in the first half, which is
        all but impossible, one may not be found, and is embedded again."""
        found = np.full(len(digests), -1)
        for run, rows in self._runs:
            places = np.searchsorted(run[:, 0], digests[:, 0]).clip(max=len(run) - 1)
            is_here = (run[places] == digests).all(axis=1)
            found[is_here] = rows[places[is_here]]
        return found


def digest_texts(texts: Sequence[str]) -> np.ndarray:
    """Digests [N, 2] of uint64."""
    joined = b"".join(digest(text, size=KEY_SIZE) for text in texts)
    return np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)
