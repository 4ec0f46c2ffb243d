"""The steps of mining, each cut into jobs that can be done in any order, by any process, and need not be done twice.

    read     rows and passages                  once, by one process
    embed    passages and queries               a job for each chunk
    search   what every query finds             a job for each shard of the passages
    select   candidates, scores, output rows    a job for each chunk of rows

A job is done when its file is there; files get their names when they are complete.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.retrieval.entries import Entry
from .data_source import fingerprint
from .embedders import CrossEncoderScores, Embedder, load_embedder
from .material import Material, read_material
from .options import MiningOptions
from .search import FOUND, IndexSettings, merge, search_shard, shard_bounds
from .selector import Selector
from .vectors import ChunkedVectors
from .work_folder import WorkFolder


JOB_STEPS = ("embed", "search", "select")


class Miner:
    """One mining run. Every process that takes part makes its own; what they share is the work folder."""

    def __init__(self, options: MiningOptions, entry: Entry) -> None:
        self.options = options
        self.entry = entry
        self.work = WorkFolder(options.work)
        self._index_settings = IndexSettings(
            options.index,
            options.ivf_lists,
            options.ivf_probes,
            options.hnsw_links,
            options.hnsw_search,
            options.index_device,
            options.memory_mb,
        )

    def prepare(self) -> None:
        """The first step, and the removal of what was done with other settings."""
        self.work.prepare(self._settings())
        folder = self.work.folder("read")
        if not (folder / "done").is_file():
            read_material(
                self.entry,
                self.options.corpus,
                folder,
                split=self.options.split or self.entry.split or "train",
                max_rows=self.options.max_rows,
                skip_bad_rows=self.options.skip_bad_rows,
            )
            (folder / "done").touch()

    def jobs(self, step: str) -> list[int]:
        """The jobs of a step that are still to be done."""
        return [number for number, file in enumerate(self._files(step)) if not file.is_file()]

    def work_of(self, step: str, number: int) -> int:
        """How many passages or rows a job deals with."""
        start, stop = self._bounds(step)[number]
        return stop - start

    def do(self, step: str, number: int) -> None:
        """Do one job."""
        {"embed": self._embed, "search": self._search, "select": self._select}[step](number)

    def results(self) -> list[Path]:
        """The files of the last step, in the order of the rows."""
        return self._files("select")

    # ------------------------------ what the jobs are ------------------------------

    @functools.cached_property
    def material(self) -> Material:
        """Rows and passages; there when the first step is done."""
        return Material(self.work.folder("read"))

    def _bounds(self, step: str) -> list[tuple[int, int]]:
        size = self.options.chunk_size
        rows = _chunks(self.material.row_count, size)
        if step == "embed":
            return _chunks(len(self.material.passages), size) + rows
        if step == "search":
            return shard_bounds(self.material.searched, self._passages.dimension, self._index_settings)
        return rows

    def _files(self, step: str) -> list[Path]:
        folder = self.work.folder(step)
        if step == "embed":
            return self._vector_files("passages") + self._vector_files("queries")
        pattern = {"search": "shard-{:05}.npy", "select": "rows-{:05}.jsonl"}[step]
        return [folder / pattern.format(number) for number in range(len(self._bounds(step)))]

    def _vector_files(self, kind: str) -> list[Path]:
        count = len(self.material.passages) if kind == "passages" else self.material.row_count
        chunks = len(_chunks(count, self.options.chunk_size))
        return [self.work.folder("embed") / f"{kind}-{number:05}.npy" for number in range(chunks)]

    # ------------------------------ the jobs ------------------------------

    def _embed(self, number: int) -> None:
        start, stop = self._bounds("embed")[number]
        file = self._files("embed")[number]
        if file.name.startswith("passages"):
            instruction = self._instruction if self.entry.symmetric else ""
            self._embedder.write_documents(self.material.passage_texts(start, stop), instruction, file)
        else:
            rows = self.material.rows(start, stop)
            own = [self._instruction if row.instruction is None else row.instruction for row in rows]
            self._embedder.write_queries([row.query for row in rows], own, file)

    def _search(self, number: int) -> None:
        start, stop = self._bounds("search")[number]
        depth = self.options.window[1]
        file = self._files("search")[number]
        temporary = file.with_suffix(".tmp")
        found = np.lib.format.open_memmap(temporary, "w+", FOUND, (len(self._queries), depth))
        search_shard(self._queries, self._passages, start, stop, depth, self._index_settings, found)
        found.flush()
        os.replace(temporary, file)

    def _select(self, number: int) -> None:
        start, stop = self._bounds("select")[number]
        found = merge([shard[start:stop] for shard in self._shards], self.options.window[1])
        rows = self.material.rows(start, stop)
        records, summary = self._selector.select(rows, found, self._queries.read(start, stop), start)
        file = self._files("select")[number]
        write_text(file.with_suffix(".json"), json.dumps(summary, ensure_ascii=False))
        write_text(file, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))

    @property
    def _instruction(self) -> str:
        if self.options.instruction is not None:
            return self.options.instruction
        return self.entry.instructions[0] if len(self.entry.instructions) == 1 else ""

    @functools.cached_property
    def _embedder(self) -> Embedder:
        options = self.options
        return load_embedder(options.model, options.device, options.query_prompt, options.document_prompt)

    @functools.cached_property
    def _passages(self) -> ChunkedVectors:
        return ChunkedVectors(self._vector_files("passages"), self.options.chunk_size)

    @functools.cached_property
    def _queries(self) -> ChunkedVectors:
        return ChunkedVectors(self._vector_files("queries"), self.options.chunk_size)

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        return [np.load(file, mmap_mode="r") for file in self._files("search")]

    @functools.cached_property
    def _selector(self) -> Selector:
        name = self.options.cross_encoder
        judge = None if name is None else CrossEncoderScores(name, self.options.device)
        return Selector(self.options, self.material, self._passages, judge)

    # ------------------------------ what they depend on ------------------------------

    def _settings(self) -> dict[str, Any]:
        options = self.options
        values = {name: getattr(options, name) for name in options.__dataclass_fields__}
        entry = self.entry
        files = [*fingerprint(entry.location), *fingerprint(options.corpus)]
        read = {"location": entry.location, "columns": dict(entry.columns), "entry_split": entry.split, "files": files}
        return {
            "read": read | _pick(values, ("corpus", "split", "max_rows", "skip_bad_rows")),
            "embed": {"files": fingerprint(options.model), "instruction": self._instruction}
            | {"instructions": list(entry.instructions), "symmetric": entry.symmetric}
            | _pick(values, ("model", "query_prompt", "document_prompt", "chunk_size")),
            "search": {"depth": options.window[1]}
            | _pick(values, ("index", "ivf_lists", "ivf_probes", "hnsw_links", "hnsw_search", "memory_mb")),
            "select": {"judge": fingerprint(options.cross_encoder)}
            | _pick(
                values,
                (
                    "num_negatives", "ranks", "sampling", "seed", "near_duplicate_similarity", "absolute_margin",
                    "relative_margin", "cross_encoder", "format", "examples",
                ),
            ),
        }  # fmt: skip


def write_text(file: Path, content: str) -> None:
    """Write to a temporary name, then rename: a file with its name is complete."""
    temporary = file.with_suffix(f"{file.suffix}.tmp")
    temporary.write_text(content, "utf-8")
    os.replace(temporary, file)


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _pick(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}
