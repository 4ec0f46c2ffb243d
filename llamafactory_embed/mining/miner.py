"""The steps of mining, each cut into jobs that can be done in any order, by any process, and need not be done twice.

    read     rows and passages                  once, by one process
    embed    passages and queries               a job for each chunk
    search   the nearest passages of queries    a job for each shard of the passages
    select   candidates, scores, output rows    a job for each chunk of rows

A job is done when its file is there; files get their names when they are complete.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.retrieval.entries import Entry
from ..data.retrieval.reader import task_instruction
from .embedders import CrossEncoderScores, Embedder, load_embedder
from .material import Material, read_material
from .options import STEP_OPTIONS, MiningOptions
from .search import HIT, IndexSettings, merge_shards, search_shard, shard_bounds
from .selector import Selector
from .sources import file_stamps
from .vectors import ChunkedVectors, map_array
from .work_folder import STEPS, WorkFolder, checked_file


JOB_STEPS = STEPS[1:]
LAYOUT = 3  # of the files of a work folder; folders of another layout are done again


class Job(NamedTuple):
    """What a job deals with, [start, stop), and the file that is there when it is done."""

    start: int
    stop: int
    file: Path


class Miner:
    """One mining run. Every process that takes part makes its own; what they share is the work folder."""

    def __init__(self, options: MiningOptions, entry: Entry) -> None:
        self.options = options
        self.entry = entry
        self.work = WorkFolder(options.work)
        self._jobs_of: dict[str, list[Job]] = {}
        self._index_settings = IndexSettings(
            kind=options.index,
            ivf_lists=options.ivf_lists,
            ivf_probes=options.ivf_probes,
            hnsw_links=options.hnsw_links,
            hnsw_search=options.hnsw_search,
            device=options.index_device,
            memory_mb=options.memory_mb,
            precision=options.precision,
            rescore_multiplier=options.rescore_multiplier,
        )

    def prepare(self) -> None:
        """Do the first step, and remove what was done with other settings."""
        self.work.prepare(self._settings())
        folder = self.work.folder("read")
        if not self.work.is_finished("read"):
            read_material(
                self.entry,
                self.options.corpus,
                folder,
                split=self.options.split or self.entry.split or "train",
                max_rows=self.options.max_rows,
                skip_bad_rows=self.options.skip_bad_rows,
            )
            self.work.finish("read")

    def jobs(self, step: str) -> list[int]:
        """The jobs of a step that are still to be done."""
        return [number for number, job in enumerate(self._jobs(step)) if not job.file.is_file()]

    def size_of(self, step: str, number: int) -> int:
        """How many passages or rows a job deals with."""
        job = self._jobs(step)[number]
        return job.stop - job.start

    def do(self, step: str, number: int) -> None:
        """Do one job."""
        {"embed": self._embed, "search": self._search, "select": self._select}[step](number)

    def results(self) -> list[Path]:
        """The files of the last step, in the order of the rows."""
        return [job.file for job in self._jobs("select")]

    # ------------------------------ what the jobs are ------------------------------

    @functools.cached_property
    def material(self) -> Material:
        """Rows and passages; there when the first step is done."""
        return Material(self.work.folder("read"), task_instruction(self.entry))

    def _jobs(self, step: str) -> list[Job]:
        """All jobs of a step, done or not. A large corpus has very many, so they are listed once."""
        if step not in self._jobs_of:
            files = self._files(step)
            self._jobs_of[step] = [Job(*each, file) for each, file in zip(self._bounds(step), files, strict=True)]
        return self._jobs_of[step]

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
        start, stop, file = self._jobs("embed")[number]
        with checked_file(file) as temporary:
            if file.name.startswith("passages"):
                instruction = self._instruction if self.entry.symmetric else ""
                self._embedder.write_documents(self.material.passage_texts(start, stop), instruction, temporary)
            else:
                rows = self.material.rows(start, stop)
                instructions = [self._instruction if row.instruction is None else row.instruction for row in rows]
                self._embedder.write_queries([row.query for row in rows], instructions, temporary)

    def _search(self, number: int) -> None:
        start, stop, file = self._jobs("search")[number]
        depth = self.options.window[1]
        with checked_file(file) as temporary:
            hits = np.lib.format.open_memmap(temporary, "w+", HIT, (len(self._queries), depth))
            search_shard(self._queries, self._passages, start, stop, depth, self._index_settings, hits)
            hits.flush()

    def _select(self, number: int) -> None:
        start, stop, file = self._jobs("select")[number]
        hits = merge_shards(self._shards, start, stop, self.options.window[1])
        rows = self.material.rows(start, stop)
        records, summary = self._selector.select(rows, hits, self._queries.read(start, stop), start)
        with checked_file(file.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(summary, ensure_ascii=False), encoding="utf-8")
        with checked_file(file) as temporary:
            lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in records)
            temporary.write_text("".join(lines), encoding="utf-8")

    @property
    def _instruction(self) -> str:
        """The instruction of rows that name none."""
        return task_instruction(self.entry) if self.options.instruction is None else self.options.instruction

    @functools.cached_property
    def _embedder(self) -> Embedder:
        options = self.options
        return load_embedder(
            options.model, options.device, options.query_prompt, options.document_prompt, options.settings
        )

    @functools.cached_property
    def _passages(self) -> ChunkedVectors:
        return ChunkedVectors(self._vector_files("passages"), self.options.chunk_size)

    @functools.cached_property
    def _queries(self) -> ChunkedVectors:
        return ChunkedVectors(self._vector_files("queries"), self.options.chunk_size)

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        return [map_array(job.file) for job in self._jobs("search")]

    @functools.cached_property
    def _selector(self) -> Selector:
        name = self.options.cross_encoder
        cross_encoder = None if name is None else CrossEncoderScores(name, self.options.device)
        return Selector(self.options, self.material, self._passages, cross_encoder)

    # ------------------------------ what they depend on ------------------------------

    def _settings(self) -> dict[str, Any]:
        """By step, everything on which its results depend, apart from the results of the steps before."""
        entry = self.entry
        settings = {
            step: {name: getattr(self.options, name) for name in names} for step, names in STEP_OPTIONS.items()
        }
        settings["read"] |= {
            "layout": LAYOUT,
            "location": entry.location,
            "columns": dict(entry.columns),
            "entry_split": entry.split,
            "instructions": list(entry.instructions),
            "files": [*file_stamps(entry.location), *file_stamps(self.options.corpus)],
        }
        settings["embed"] |= {
            "files": file_stamps(self.options.model),
            "instruction": self._instruction,
            "symmetric": entry.symmetric,
        }
        settings["search"] |= {"depth": self.options.window[1]}
        settings["select"] |= {"cross_encoder_files": file_stamps(self.options.cross_encoder)}
        return settings


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]
