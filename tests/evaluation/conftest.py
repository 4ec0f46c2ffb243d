"""A checkpoint and local data to judge it on."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import PROSE, make_embedder
from tests.tiny_models import tiny_tokenizer


# What needs the extra `eval`.
NEEDING_MTEB = ("answer_tasks", "command", "eval_recipes", "eval_tasks_in_training", "lexical", "local_tasks")
NEEDING_MTEB += ("late_interaction", "mteb_encoder", "prompts", "real", "report")
collect_ignore = [f"test_{name}.py" for name in NEEDING_MTEB] if importlib.util.find_spec("mteb") is None else []

INSTRUCTIONS = {"next_line": "Given a line, retrieve the line that follows", "plain": ""}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedder of two Matryoshka sizes that was trained with an instruction."""
    folder = tmp_path_factory.mktemp("runs") / "embedder"
    save_checkpoint(make_embedder(matryoshka_dims=[8, 16], instructions=INSTRUCTIONS), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_lines(path: Path, entries: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def write_beir(folder: Path, judgements: Sequence[tuple[str, str, int]] | None = None) -> Path:
    """A collection in which a line of some prose looks for the lines that follow it, the next one with grade 2."""
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": line} for n, line in enumerate(PROSE)])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": line[:40]} for n, line in enumerate(PROSE)])
    if judgements is None:
        last = len(PROSE) - 1
        judgements = [(f"q{n}", f"d{min(n + step, last)}", 3 - step) for n in range(last - 1) for step in (1, 2)]
    (folder / "qrels").mkdir(exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, each)) for each in judgements)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection in BEIR's layout, with grades."""
    return write_beir(tmp_path_factory.mktemp("data") / "following_lines")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`llamafactory-embed` in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        from llamafactory_embed.cli import main

        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
