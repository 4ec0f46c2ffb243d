"""What was retrieved, as run files of TREC, which others' tools judge: `query Q0 document rank score tag`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from .tasks import ChosenTask


if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

ENDING = ".trec"
WHITE_SPACE = re.compile(r"\s")


class RunFiles:
    """The run files of a model, one for each retrieval task and subset, in a folder of the model's name."""

    def __init__(self, folder: Path, label: str) -> None:
        self.tag = re.sub(r"[^\w.-]+", "_", label.replace("/", "__")).strip("_")
        self.folder = folder / self.tag

    def has(self, chosen: ChosenTask) -> bool:
        """Whether all files of a task were written; other tasks than retrieval have none."""
        paths = (path for task in chosen.parts for path, _, _ in self._files(task))
        return not chosen.is_retrieval or all(path.is_file() for path in paths)

    def write(self, chosen: ChosenTask, predictions: Path) -> None:
        """Turn mteb's predictions of a task into run files."""
        if not chosen.is_retrieval:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for task in chosen.parts:
            path = predictions / task.prediction_file_name
            if not path.is_file():
                continue  # none of its subsets was run
            ranked = json.loads(path.read_text(encoding="utf-8"))
            for file, subset, split in self._files(task):
                if split in ranked.get(subset, {}):
                    ignored = getattr(task, "ignore_identical_ids", False)
                    lines = run_lines(ranked[subset][split], self.tag, drop_identical_ids=ignored)
                    write_text(file, "".join(lines))

    def _files(self, task: AbsTask) -> Iterator[tuple[Path, str, str]]:
        """The file of each subset and split. The parts of the name that all tasks share are left out."""
        for subset in task.hf_subsets:
            for split in task.eval_splits:
                parts = [task.metadata.name]
                parts += [subset] if subset != "default" else []
                parts += [split] if len(task.eval_splits) > 1 else []
                yield self.folder / ("_".join(parts) + ENDING), subset, split


def run_lines(ranked: Mapping[str, Mapping[str, float]], tag: str, drop_identical_ids: bool = False) -> Iterator[str]:
    """The documents of each query, best first, in the order of trec_eval: equal scores by document id, descending.

    With `drop_identical_ids` a query is not its own answer, as in tasks that mteb judges like this (ArguAna)."""
    for query, scores in ranked.items():
        kept = [(score, key) for key, score in scores.items() if not (drop_identical_ids and key == query)]
        for rank, (score, document) in enumerate(sorted(kept, reverse=True), start=1):
            yield f"{without_spaces(query)} Q0 {without_spaces(document)} {rank} {score!r} {tag}\n"


def without_spaces(key: str) -> str:
    """An id as one column: white space as in an address (`%20`)."""
    return WHITE_SPACE.sub(lambda match: f"%{ord(match.group()):02X}", key)
