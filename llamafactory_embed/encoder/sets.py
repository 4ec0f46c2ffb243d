"""`Encoder.encode` and `Encoder.similarity` of a model that keeps several vectors of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..hparams.embedding import Precision
from ..model.quantization import quantize
from ..model.vector_sets import VectorSets, max_sim


EmbeddedSets = Iterable[tuple[Sequence[int], Sequence[Tensor]]]
"""The vectors [n, d] of some texts at a time, with the texts' positions."""


def check_asked(precision: Precision, output_file: str | Path | None, devices: Sequence[str] | None) -> None:
    """Refuse what is written for one vector a text."""
    if precision not in ("float32", "float16"):
        raise ValueError(
            f"`precision: {precision}` stores one vector a text, and this model has one for every token "
            "(`multi_vector: true`): use float32 or float16."
        )
    for name, value in {"output_file": output_file, "devices": devices}.items():
        if value is not None:
            raise ValueError(
                f"`{name}` needs one vector a text, and this model has one for every token (`multi_vector: true`): "
                "leave it out."
            )


def collect_sets(
    embedded: EmbeddedSets,
    count: int,
    finish: Callable[[Tensor], Tensor],
    precision: Precision,
    single: bool,
    convert_to: Literal["numpy", "torch"],
    show_progress_bar: bool,
) -> Any:
    """The finished vectors [n, d] of each of `count` texts, in their order; of a single text, its own."""
    texts: list[Any] = [None] * count
    with tqdm(total=count, desc="Encoding", disable=not show_progress_bar) as progress:
        for positions, parts in embedded:
            for position, vectors in zip(positions, parts, strict=True):
                array = quantize(finish(vectors).cpu().numpy(), precision, None)
                texts[position] = torch.from_numpy(array) if convert_to == "torch" else array
            progress.update(len(positions))
    return texts[0] if single else texts


def similarity_of_sets(queries: Any, documents: Any) -> np.ndarray:
    """MaxSim of all queries and documents, [N, M], as `encode` returns them."""
    with torch.inference_mode():
        return max_sim(as_sets(queries), as_sets(documents)).numpy()


def as_sets(texts: Any) -> VectorSets:
    """Vectors [n, d] of one text or of each of several, in any kind of array, of unit length."""
    is_one_text = isinstance(texts, (np.ndarray, Tensor)) and texts.ndim == 2
    each = [torch.as_tensor(text).float().cpu() for text in ([texts] if is_one_text else texts)]
    if not each or any(vectors.ndim != 2 or not len(vectors) for vectors in each):
        raise ValueError(
            "`similarity` compares texts of several vectors [n, d], as `encode` returns them: give it a list of texts."
        )
    sets = VectorSets.of(each)
    return VectorSets(F.normalize(sets.vectors, dim=-1), sets.counts)
