"""Where embeddings go as they come: an array, or a `.npy` file that gets its name when it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch


class EmbeddingResults:
    """An array to fill, `rows`; `finish` returns it as `encode` was asked to."""

    def __init__(self, shape: tuple[int, int], dtype: Any, output_file: str | Path | None) -> None:
        """With an `output_file` the rows are mapped from a temporary file, for corpora that do not fit into memory."""
        self.target = output_file
        self.temporary = None if output_file is None else Path(f"{output_file}.tmp")
        if self.temporary is None:
            self.rows = np.empty(shape, dtype)
        else:
            self.rows = np.lib.format.open_memmap(self.temporary, mode="w+", dtype=dtype, shape=shape)

    def finish(self, *, single: bool, convert_to: Literal["numpy", "torch"]) -> Any:
        """All rows, or the one of a single text; of a file, memory-mapped."""
        result = self.rows
        if self.temporary is not None:
            self.rows.flush()  # type: ignore[attr-defined]
            os.replace(self.temporary, str(self.target))
            result = np.load(str(self.target), mmap_mode="r")
        if single:
            result = result[0]
        return torch.from_numpy(np.array(result)) if convert_to == "torch" else result
