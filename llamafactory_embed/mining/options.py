"""The options of `llamafactory-embed mine`, and which of its steps depend on which of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from ..hparams.option import REQUIRED, option
from ..hparams.source import SOURCE_SETTINGS, SourceOptions


@dataclass(frozen=True, kw_only=True)
class MiningOptions(SourceOptions):
    """The defaults of ranks and number are those of tDRO (Ma et al. 2024, arXiv 2408.10613)."""

    model: str = option(REQUIRED, "a checkpoint of this package or a published one: a folder, or a name on the hub")
    data: str = option(REQUIRED, "the rows: a data set of dataset_info.json, a file, or a folder in BEIR's layout")
    output: str = option(REQUIRED, "the file to write, .jsonl")
    dataset_dir: str = option("data", "folder of dataset_info.json")
    corpus: str | None = option(
        None, "the passages to search: a file or a BEIR folder; default: those of a BEIR folder, else the data's own"
    )
    split: str | None = option(None, "split of a BEIR folder, whose judgements are qrels/SPLIT.tsv; default: train")
    instruction: str | None = option(None, "instruction of queries; default: that of the data set")
    query_prompt: str | None = option(
        None,
        "for sentence-transformers: text before a query, in which {instruction} stands for its instruction; default: "
        "the model's prompt",
    )
    document_prompt: str | None = option(
        None, "for sentence-transformers: text before a passage; default: the model's prompt"
    )
    num_negatives: int = option(16, "most negatives of a row", minimum=1)
    ranks: str = option("2:100", "candidates are the ranks FIRST:LAST, counted from 0, LAST not included")
    sampling: Literal["random", "first"] = option("random", "which of the candidates are taken")
    seed: int = option(42, "seed of the sampling")
    near_duplicate_similarity: float | None = option(
        None, "drop candidates whose cosine with a positive is above this", minimum=-1, maximum=1
    )
    absolute_margin: float | None = option(
        None, "drop candidates that score above the positive's score minus this", minimum=0
    )
    relative_margin: float | None = option(
        None, "drop candidates that score above the positive's score minus this share of it", minimum=0, maximum=1
    )
    cross_encoder: str | None = option(
        None,
        "a sentence-transformers CrossEncoder: its scores are written for distillation and used for margins",
    )
    format: Literal["retrieval", "tdro"] = option("retrieval", "layout of the output")
    index: Literal["flat", "ivf", "hnsw"] = option("flat", "FAISS index; flat is exact")
    ivf_lists: int | None = option(
        None, "cells of an ivf index; default: 4 times the root of its number of vectors", minimum=1
    )
    ivf_probes: int = option(32, "cells that are searched", minimum=1)
    hnsw_links: int = option(32, "links of a vector in an hnsw index", minimum=2)
    hnsw_search: int = option(128, "candidates that a search in an hnsw index keeps", minimum=1)
    precision: Literal["float32", "int8", "binary"] = option(
        "float32", "how a flat index holds passages; what bytes or bits find is ranked by the whole vectors"
    )
    rescore_multiplier: int = option(
        4, "of passages in bytes or bits, how many times as many are found as are then ranked", minimum=1
    )
    index_device: Literal["auto", "cpu", "gpu"] = option(
        "auto", "device of the index; auto: all GPUs if this FAISS supports them"
    )
    memory_mb: int = option(
        4096,
        "memory for an index and its search, in MiB; what does not fit is searched in shards",
        minimum=64,
    )
    chunk_size: int = option(
        8192, "passages or rows done at a time; interrupted work continues after the last chunk", minimum=1
    )
    device: str | None = option(None, "device of the models; default: a GPU if there is one")
    ray_workers: int = option(0, "Ray workers that share the work; 0: do not use Ray", minimum=0)
    max_rows: int | None = option(None, "use the first rows only", minimum=1)
    skip_bad_rows: bool = option(False, "skip and count rows that cannot be used")
    work_folder: str | None = option(None, "folder for vectors and partial results; default: OUTPUT.work")
    keep_work: bool = option(False, "keep that folder, so that a run with other settings need not embed again")
    overwrite: bool = option(False, "replace an existing OUTPUT")
    examples: int = option(3, "rows shown in the summary", minimum=0)

    def __post_init__(self) -> None:
        first, last = self.window
        if first >= last:
            raise ValueError(f"`ranks`: {self.ranks} is an empty range; FIRST must be below LAST.")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"`output`: {self.output!r} must end in .jsonl.")
        if self.index == "hnsw" and self.index_device == "gpu":
            raise ValueError("`index_device: gpu`: FAISS has no hnsw index for GPUs; use `index: flat` or `ivf`.")

        if self.precision != "float32" and self.index != "flat":
            raise ValueError(f"`precision: {self.precision}` is for `index: flat`; {self.index} holds whole vectors.")
        if self.precision != "float32" and self.index_device == "gpu":
            raise ValueError(f"`index_device: gpu`: an index of `precision: {self.precision}` is searched on the CPU.")

    @property
    def window(self) -> tuple[int, int]:
        """The ranks that are candidates, [first, last)."""
        match = re.fullmatch(r"(\d+):(\d+)", self.ranks)
        if match is None:
            raise ValueError(f"`ranks`: {self.ranks!r} must be FIRST:LAST, for instance 2:100.")
        return int(match[1]), int(match[2])

    @property
    def work(self) -> str:
        """The folder of vectors and partial results."""
        return os.path.abspath(self.work_folder or f"{self.output}.work")

    @property
    def has_margin(self) -> bool:
        """Whether candidates are compared with the positive."""
        return self.absolute_margin is not None or self.relative_margin is not None


# A step whose options change is done again, and so are the steps after it. The other options change no result.
STEP_OPTIONS = {
    "read": ("corpus", "split", "max_rows", "skip_bad_rows"),
    "embed": ("model", "query_prompt", "document_prompt", "chunk_size", *SOURCE_SETTINGS),
    "search": ("index", "ivf_lists", "ivf_probes", "hnsw_links", "hnsw_search", "memory_mb", "precision",
        "rescore_multiplier"),
    "select": (
        "num_negatives", "ranks", "sampling", "seed", "near_duplicate_similarity", "absolute_margin",
        "relative_margin", "cross_encoder", "format", "examples",
    ),
}  # fmt: skip
