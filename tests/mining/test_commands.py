"""The commands `mine` and `dedup`: their options, their pages, what they print, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.cli import main
from llamafactory_embed.data.retrieval.reader import load_tasks
from llamafactory_embed.hparams.command_line import flag
from llamafactory_embed.hparams.option import REQUIRED
from llamafactory_embed.hparams.source import SourceOptions
from llamafactory_embed.mining.dedup.options import DedupOptions
from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions

from .helpers import read_lines, write_lines


pytest.importorskip("faiss")

PAGE = Path(__file__).parents[2] / "docs" / "mining.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with some data."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [{"query": f"q{number}", "positive": f"p{number}"} for number in range(6)])
    return tmp_path


def test_mine_from_the_command_line(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mine", "--model", str(checkpoint), "--data", "rows.jsonl", "--output", "sets/mined.jsonl"]
    words += ["--dataset-dir", "sets", "--ranks", "0:9", "--num-negatives", "2", "--instruction", "Find it"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rows written +6\n", printed)
    assert re.search(r"candidates dropped, known answers +6\n", printed)
    assert printed.count("rows.jsonl:") == 3
    entry = json.loads(printed[printed.index("{") :])
    assert entry["mined"]["file_name"] == "mined.jsonl"
    # What it prints is what a recipe needs.
    (folder / "sets" / "dataset_info.json").write_text(json.dumps(entry), "utf-8")
    (task,) = load_tasks(["mined"], "sets", num_negatives=2)
    assert task.instruction == "Find it"
    assert [row.negatives for row in task.rows] == [
        tuple(row["negative"]) for row in read_lines(folder / "sets" / "mined.jsonl")
    ]
    assert all(len(row.negatives) == 2 for row in task.rows)

    assert main(words) == 1
    assert "`output`: sets/mined.jsonl exists; name another file" in capsys.readouterr().err


def test_the_entry_keeps_what_the_input_says(checkpoint: Path, folder: Path) -> None:
    settings = {"instruction": "Find alike", "symmetric": True, "task": "alike", "own_passages_only": True}
    entry = {"file_name": "../rows.jsonl", "formatting": "retrieval", **settings}
    (folder / "sets").mkdir()
    (folder / "sets" / "dataset_info.json").write_text(json.dumps({"rows": entry}), "utf-8")
    options = MiningOptions(
        model=str(checkpoint), data="rows", output="sets/mined.jsonl", dataset_dir="sets", ranks="0:9"
    )
    assert mine(options)["entry"] == {"mined": entry | {"file_name": "mined.jsonl"}}


def test_dedup_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test.txt").write_text("Q3!\nsomething else\n", "utf-8")
    words = ["dedup", "--data", "rows.jsonl", "--against", "test.txt", "--output", "clean.jsonl"]
    assert main([*words, "--methods", "minhash", "simhash"]) == 0
    printed = capsys.readouterr().out
    assert "6 rows, 1 left out, 5 in clean.jsonl" in printed
    assert re.search(r"test\.txt +2 +1\n", printed)
    assert re.search(r"rows\.jsonl:4 +minhash, 100% common\n +q3\n +Q3!  \(\S*test\.txt:1\)", printed)
    assert [row["query"] for row in read_lines(folder / "clean.jsonl")] == ["q0", "q1", "q2", "q4", "q5"]


def mining_sentences() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"data": "nowhere"}, r"`data`: there is no file or folder `nowhere`, and `dataset_dir: data` holds no"),
        ({"corpus": "nowhere"}, r"`corpus`: there is no file or folder `nowhere`"),
        ({"data": "rows.jsonl,others"}, r"`data`: there is no file or folder `rows.jsonl,others`"),
        ({"data": "bad.jsonl"}, r"bad\.jsonl:1: there is no column `positive`"),
        ({"data": "scored.jsonl"}, r"scored\.jsonl:1: a scored pair has no right or wrong passage"),
        ({"data": "empty.jsonl"}, r"`data`: `empty` \(\S+empty.jsonl\) has no rows"),
        ({"corpus": "empty.jsonl"}, r"`corpus`: `empty.jsonl` has no passages"),
        ({"corpus": "rows.jsonl"}, r"rows\.jsonl:1: a passage needs a text in one of `text`"),
        ({"corpus": "half.jsonl"}, r"half\.jsonl:1: `text` holds half a character \(U\+D83D at position 2\)"),
        ({"output": "rows.jsonl", "overwrite": True}, r"`output`: rows.jsonl is the data itself"),
        ({"output": "out.csv"}, r"`output`: 'out.csv' must end in .jsonl"),
        ({"ranks": "2-9"}, r"`ranks`: '2-9' must be FIRST:LAST, for instance 2:100"),
        ({"ranks": "9:2"}, r"`ranks`: 9:2 is an empty range; FIRST must be below LAST"),
        ({"num_negatives": 0}, r"`num_negatives` must be at least 1, not 0"),
        ({"relative_margin": 3.0}, r"`relative_margin` must be between 0 and 1, not 3.0"),
        ({"memory_mb": 5}, r"`memory_mb` must be at least 64, not 5"),
        ({"index": "hnsw", "index_device": "gpu"}, r"`index_device: gpu`: FAISS has no hnsw index for GPUs"),
        ({"index": "ivf", "precision": "int8"}, r"`precision: int8` is for `index: flat`; ivf holds whole vectors"),
        ({"index_device": "gpu", "precision": "binary"}, r"`precision: binary` is searched on the CPU"),
        ({"model": "nowhere"}, r"nowhere is no folder, and the hub does not give it: "),
        ({"query_prompt": "Q: "}, r"`query_prompt` is for sentence-transformers models; \S+ has its own templates"),
        ({"cross_encoder": "nowhere"}, r"`cross_encoder`: nowhere cannot be loaded as a CrossEncoder: "),
        ({"data": "beir"}, r"`split`: `\S+beir` has no judgements for `train`; it has test"),
        ({"data": "beir", "split": "test"}, r"test.tsv:3: `d9` is judged but is not in corpus.jsonl"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), mining_sentences(), ids=lambda value: str(value)[:40])
def test_what_mine_refuses(
    wrong: dict[str, Any], sentence: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.jsonl").touch()
    write_lines(folder / "bad.jsonl", [{"query": "q"}])
    (folder / "half.jsonl").write_text('{"text": "a \\ud83d"}\n', "utf-8")
    write_lines(folder / "scored.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 0.5}])
    (folder / "beir" / "qrels").mkdir(parents=True)
    write_lines(folder / "beir" / "corpus.jsonl", [{"_id": "d1", "text": "t"}])
    write_lines(folder / "beir" / "queries.jsonl", [{"_id": "q1", "text": "t"}, {"_id": "q2", "text": "u"}])
    (folder / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td9\t1\n", "utf-8")
    before = (folder / "rows.jsonl").read_bytes()
    options = {"model": str(checkpoint), "data": "rows.jsonl", "output": "new.jsonl", "ranks": "0:5"} | wrong
    words = ["mine"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()
    told = [line for line in said if re.search(sentence, line)]
    assert told, said[-3:]
    assert (folder / "rows.jsonl").read_bytes() == before
    assert not (folder / "new.jsonl").exists()


def test_a_missing_package_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["mine", "--model", str(checkpoint), "--data", "rows.jsonl", "--output", "new.jsonl"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        assert main(words) == 1
    assert "Mining needs FAISS, which the extra `eval` brings" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentence_transformers", None)
        assert main([*words, "--cross-encoder", "some/model"]) == 1
    assert "is loaded by sentence-transformers, which is not installed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert main([*words, "--ray-workers", "2"]) == 1
    assert "`ray_workers` needs Ray Data, which the extra `ray` brings" in capsys.readouterr().err


@pytest.mark.parametrize(("title", "options"), [("mine", MiningOptions), ("dedup", DedupOptions)])
def test_page_explains_every_option_once_with_its_default(title: str, options: type) -> None:
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (section,) = [each for each in sections if each.startswith(f"Options of `{title}`")]
    explained = re.findall(r"^\| `(--[\w-]+)` \|\s*([^|]*?)\s*\| .", section, flags=re.MULTILINE)
    elsewhere = {field.name for field in dataclasses.fields(SourceOptions)}  # docs/checkpoints.md
    own = [field for field in dataclasses.fields(options) if field.name not in elsewhere]
    declared = [(flag(field), written(field)) for field in own]
    assert sorted(explained) == sorted(declared)


def written(field: dataclasses.Field[Any]) -> str:
    """A default as the page writes it."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is REQUIRED:
        return "required"
    if default is None or default is False:
        return ""
    return f"`{' '.join(default) if isinstance(default, list) else default}`"
