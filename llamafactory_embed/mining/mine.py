"""`mine`: hard negatives for a data set, from reading it to the summary."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.retrieval.entries import Entry
from ..files import whole_file, write_json
from .miner import JOB_STEPS, Miner
from .options import MiningOptions
from .search import import_faiss
from .sources import check_readable, find_rows
from .workers import find_workers, local_device


def mine(options: MiningOptions) -> dict[str, Any]:
    """Write `options.output` and return the summary's figures. What an interrupted call has done is not done again."""
    output = Path(options.output)
    entry = _check(options, output)
    workers = find_workers(options)
    miner = Miner(_for_all_processes(options), entry)
    if workers.is_first:
        output.parent.mkdir(parents=True, exist_ok=True)
        miner.prepare()
    workers.wait()
    for step in JOB_STEPS:
        workers.do_jobs(miner, step)
    summary = _summarize(miner) | {"entry": suggest_entry(options, entry)}
    if workers.is_first:
        _join_results(miner.results(), output)
        write_json(output.with_suffix(".summary.json"), summary, indent=1)
    workers.close()
    if workers.is_first and not options.keep_work:
        miner.work.remove()
    return summary


def _check(options: MiningOptions, output: Path) -> Entry:
    """The entry of the data, when everything has been checked that needs no data or model."""
    if output.exists() and not options.overwrite:
        raise ValueError(f"`output`: {output} exists; name another file, or allow it with `overwrite`.")
    import_faiss()
    entry = find_rows("data", options.data, options.dataset_dir)
    if options.corpus is not None:
        check_readable("corpus", options.corpus)
    if not entry.on_hub and output.resolve() == Path(entry.location).resolve():
        raise ValueError(f"`output`: {output} is the data itself; name another file.")
    return entry


def suggest_entry(options: MiningOptions, entry: Entry) -> dict[str, Any]:
    """The entry of dataset_info.json with which a recipe can name the output; it keeps what the input's entry says."""
    settings: dict[str, Any] = {
        "file_name": os.path.relpath(options.output, options.dataset_dir),
        "formatting": "retrieval",
    }
    instruction = options.instruction if options.instruction is not None else entry.instructions[0]
    if instruction and (options.instruction is not None or len(entry.instructions) == 1):
        settings["instruction"] = instruction
    if entry.symmetric:
        settings["symmetric"] = True
    if entry.own_passages_only is not None:
        settings["own_passages_only"] = entry.own_passages_only
    if entry.task != entry.name:
        settings["task"] = entry.task
    return {Path(options.output).stem: settings}


def _for_all_processes(options: MiningOptions) -> MiningOptions:
    """The options as they hold in every process, whatever its working directory and number."""
    folders = {
        name: os.path.abspath(path)
        for name in ("model", "cross_encoder")
        if (path := getattr(options, name)) is not None and os.path.isdir(path)
    }
    return dataclasses.replace(options, **folders, work_folder=options.work, device=local_device(options))


def _join_results(parts: list[Path], output: Path) -> None:
    with whole_file(output) as temporary, open(temporary, "wb") as file:
        for part in parts:
            with open(part, "rb") as content:
                shutil.copyfileobj(content, file)


def _summarize(miner: Miner) -> dict[str, Any]:
    """Figures of all chunks together."""
    counts: Counter[str] = Counter()
    positive, negative = 0.0, 0.0
    examples: list[dict[str, Any]] = []
    for part in miner.results():
        figures = json.loads(part.with_suffix(".json").read_text("utf-8"))
        counts.update(figures["counts"])
        positive += figures["sum_of_positive_similarities"]
        negative += figures["sum_of_negative_similarities"]
        examples += figures["examples"][: miner.options.examples - len(examples)]
    written = counts["rows written"]
    return {
        "output": miner.options.output,
        "passages searched": miner.material.searched,
        "rows": counts["rows"],
        "rows written": written,
        "rows left out, for want of a candidate": counts["rows"] - written,
        "rows with fewer negatives than asked": counts["rows with fewer negatives than asked"],
        "negatives": counts["negatives"],
        "negatives above their positive": counts["negatives above their positive"],
        "mean similarity of positives": positive / written if written else None,
        "mean similarity of negatives": negative / written if written else None,
        "candidates dropped": {
            reason: counts[reason]
            for reason in ("known answers", "near-duplicates of a positive", "too close to the positive's score")
        },
        "examples": examples,
    }
