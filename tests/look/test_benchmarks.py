"""The Board's part for mteb's tasks: the command that it runs, and what it shows of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from llamafactory_embed.cli import build_parser
from llamafactory_embed.evaluation.command import read_arguments
from llamafactory_embed.evaluation.report import Line, Summary, format_csv
from llamafactory_embed.look import benchmarks


SAYS = """
import sys
print("checkpoint  task  12.00", file=sys.stderr, flush=True)
{more}
"""


def test_the_command_says_what_was_chosen(tmp_path: Path) -> None:
    words = benchmarks.evaluation_command(["a", "b"], ["nouns", "STS12"], ["bm25"], str(tmp_path), "data")
    options = read_arguments(build_parser("eval").parse_args(words[3:]))
    assert (options.checkpoints, options.tasks, options.baseline) == (["a", "b"], ["nouns", "STS12"], ["bm25"])
    assert (options.output, options.dataset_dir) == (str(tmp_path), "data")
    assert "--baseline" not in benchmarks.evaluation_command(["a"], ["b"], [], "c", "d")


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    summary = Summary(
        ["a, b", "c"], [Line("one", "ndcg", "g", {"a, b": 0.5}), Line("two", "ndcg", "g", {"a, b": 1.0, "c": 0.0})]
    )
    (tmp_path / "summary.csv").write_text(format_csv(summary), "utf-8")
    heads, rows = benchmarks.read_table(tmp_path / "summary.csv")
    assert heads == ["task", "metric", "a, b", "c"]
    assert rows == [
        ["one", "ndcg", "50.00", "–"],
        ["two", "ndcg", "100.00", "0.00"],
        ["mean of 2, g", "ndcg", "75.00", "–"],
    ]


def judge(monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "") -> list[tuple[Any, Any, Any]]:
    monkeypatch.setattr(
        benchmarks, "evaluation_command", lambda *words: [sys.executable, "-c", SAYS.format(more=more)]
    )
    running: list[subprocess.Popen[str]] = []
    shown = list(benchmarks.judge_on_page(running, ["hub/name"], ["task"], [], str(folder), "data", "en"))
    assert running == []
    return shown


def test_the_page_follows_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.csv"
    first, last = judge(monkeypatch, tmp_path, f"open({str(path)!r}, 'w').write('task,metric,m\\nt,ndcg,0.12\\n')")
    assert "12.00" in first[0]
    assert first[1]["visible"] is False
    assert last[1]["value"] == {"headers": ["task", "metric", "m"], "data": [["t", "ndcg", "12.00"]]}
    assert last[2] == gr.update(value=str(path), visible=True)


@pytest.mark.parametrize(
    ("more", "has_table"), [("sys.exit('Unknown task')", False), ("sys.exit('failed: x on y')", True)]
)
def test_an_old_table_is_not_shown_for_what_was_refused(
    more: str, has_table: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.csv").write_text("task,metric,m\n", "utf-8")
    last = judge(monkeypatch, tmp_path, more)[-1]
    assert last[1]["visible"] is has_table
    assert "Unknown task" in last[0] or has_table


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    for checkpoints, tasks in ((["a"], []), ([], ["b"])):
        with pytest.raises(gr.Error, match="至少填写一个检查点"):
            next(benchmarks.judge_on_page([], checkpoints, tasks, [], "out", "data", "zh"))
    with pytest.raises(gr.Error, match="is no checkpoint of an embedder"):
        next(benchmarks.judge_on_page([], [str(tmp_path)], ["b"], [], "out", "data", "en"))
