"""The data in the repository: every entry is sound, and what is held out does not occur in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.entries import Entry, make_entry
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.rows import Task


DATA = Path(__file__).parents[2] / "data"
INFO = json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))
HELD_OUT = "_heldout"


def entry(name: str) -> Entry:
    return make_entry(name, INFO[name], str(DATA))


def read(names: list[str]) -> list[Task]:
    return tasks_of_entries([entry(name) for name in names], None, False, 1, 42, HubOptions())


@pytest.mark.parametrize(
    "name", [name for name, settings in INFO.items() if settings.get("formatting") == "retrieval"]
)
def test_entries_are_sound(name: str) -> None:
    found = entry(name)
    if not found.on_hub and "cache" not in Path(found.location).parts:
        assert Path(found.location).exists()


def test_held_out_texts_do_not_occur_in_training() -> None:
    held_out_names = [name for name in INFO if name.startswith("wordnet_") and name.endswith(HELD_OUT)]
    train = read([name.removesuffix(HELD_OUT) for name in held_out_names])
    held_out = read(held_out_names)
    assert [task.name for task in train] == [task.name for task in held_out], "reported under the names trained on"
    train_texts = {text for task in train for row in task.rows for text in (row.query, *row.positives, *row.negatives)}
    for task in held_out:
        assert train_texts.isdisjoint(row.query for row in task.rows)
    glosses = next(task for task in held_out if task.name.endswith("_to_gloss"))
    corpus = build_retrieval_eval(glosses).corpus
    assert len(corpus) > len(glosses.rows)
    assert train_texts.isdisjoint(corpus)
    # a query such as "word: gloss" must not hide a held-out gloss either
    trained_glosses = {text.partition(": ")[2] for text in train_texts} | train_texts
    held_out_glosses = {row.query.partition(": ")[2] or row.query for task in held_out for row in task.rows}
    assert trained_glosses.isdisjoint(held_out_glosses)


def test_prose_is_held_out_by_whole_addresses() -> None:
    def sources(name: str) -> set[str]:
        lines = (DATA / INFO[name]["file_name"]).read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["source"] for line in lines}

    assert sources("prose_heldout")
    assert sources("prose").isdisjoint(sources("prose_heldout"))


def test_notices_are_there() -> None:
    assert "Princeton University" in (DATA / "wordnet" / "LICENSE").read_text(encoding="utf-8")
    assert "CC0" in (DATA / "README.md").read_text(encoding="utf-8")
