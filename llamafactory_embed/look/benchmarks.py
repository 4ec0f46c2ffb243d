"""LLaMA Board's tab Evaluate & Predict: mteb's tasks and local data, by `llamafactory-embed eval` in a process of its
own, with its table and a CSV file."""

from __future__ import annotations

import csv
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from ..board.tabs import BoardPage, shown_as_error, with_words
from ..board.words import say
from ..evaluation.groups import GROUPS
from ..evaluation.models import LEXICAL, MINILM
from .material import retrieval_sets
from .models import newest_checkpoint, runs_below


LINES_SHOWN = 12  # of what the process says
SUMMARY = "summary.csv"
COMMAND = "import sys; from llamafactory_embed.cli import main; sys.exit(main())"


def create_benchmarks(page: BoardPage) -> dict[str, Block]:
    """Build the part of the tab."""
    parts: dict[str, Any] = {}

    def part(name: str, create: Callable[..., Any], **settings: Any) -> Any:
        parts[f"judge/{name}"] = with_words(create, f"judge/{name}", elem_id=f"judge-{name}", **settings)
        return parts[f"judge/{name}"]

    with part("panel", gr.Accordion, open=False):
        with gr.Row():
            checkpoints = part("checkpoints", gr.Dropdown, multiselect=True, allow_custom_value=True, scale=3)
            tasks = part("tasks", gr.Dropdown, choices=[*GROUPS], multiselect=True, allow_custom_value=True, scale=3)
        with gr.Row():
            choices = [*LEXICAL, MINILM]
            baseline = part("baseline", gr.Dropdown, choices=choices, multiselect=True, allow_custom_value=True)
            output = part("output", gr.Textbox, value="mteb_results")
        with gr.Row():
            start = part("start", gr.Button, variant="primary")
            stop = part("stop", gr.Button, variant="stop")
        status = gr.Markdown(elem_id="judge-status")
        table = gr.Dataframe(visible=False, interactive=False, wrap=True, show_label=False, elem_id="judge-table")
        file = part("file", gr.DownloadButton, visible=False)

    def list_runs(*run: str) -> dict[str, Any]:
        return gr.update(choices=runs_below(Path(page.run_folder(*run)).parent))

    def list_tasks(dataset_dir: str) -> dict[str, Any]:
        return gr.update(choices=[*GROUPS, *retrieval_sets(dataset_dir)])

    checkpoints.focus(list_runs, page.run_widgets(), [checkpoints], queue=False)
    tasks.focus(list_tasks, [page.dataset_dir], [tasks], queue=False)
    inputs = [checkpoints, tasks, baseline, output, page.dataset_dir, page.language]
    running: list[subprocess.Popen[str]] = []

    def abort() -> None:
        for process in running:
            process.terminate()

    start.click(functools.partial(judge_on_page, running), inputs, [status, table, file])
    stop.click(abort, queue=False)
    return parts


def judge_on_page(
    running: list[subprocess.Popen[str]],
    checkpoints: Sequence[str],
    tasks: Sequence[str],
    baseline: Sequence[str],
    output: str,
    dataset_dir: str,
    language: str,
) -> Iterator[tuple[Any, Any, Any]]:
    """What the process says while it runs, at last its table and the CSV file. `running` holds the process."""
    if not checkpoints or not tasks or not output:
        raise gr.Error(say("judge.incomplete", language), print_exception=False)
    try:
        folders = [_checkpoint_of(each) for each in checkpoints]
    except ValueError as problem:
        raise shown_as_error(problem) from problem
    command = evaluation_command(folders, tasks, baseline, output, dataset_dir)
    hidden = gr.update(visible=False)
    said: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    running.append(process)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip())
            yield "```\n" + "\n".join(said[-LINES_SHOWN:]) + "\n```", hidden, hidden
        failed = process.wait() != 0
    finally:
        running.remove(process)
        process.kill()  # the page was closed
    path = Path(output) / SUMMARY
    end = "```\n" + "\n".join(said[-LINES_SHOWN:]) + "\n```"
    if failed and not any(line.startswith("failed:") for line in said):  # refused as a whole: the table is an old one
        yield end, hidden, hidden
        return
    heads, rows = read_table(path)
    yield (
        end,
        gr.update(value={"headers": heads, "data": rows}, visible=True),
        gr.update(value=str(path), visible=True),
    )


def _checkpoint_of(name: str) -> str:
    """A run's newest checkpoint; models of sentence-transformers, and names on the hub, stay as they are."""
    is_ours = Path(name).is_dir() and not (Path(name) / "modules.json").is_file()
    return str(newest_checkpoint(name)) if is_ours else name


def evaluation_command(
    checkpoints: Sequence[str], tasks: Sequence[str], baseline: Sequence[str], output: str, dataset_dir: str
) -> list[str]:
    """The words of the command line."""
    command = [sys.executable, "-c", COMMAND, "eval", *checkpoints, "--tasks", *tasks]
    command += ["--output", output, "--dataset-dir", dataset_dir]
    return command + (["--baseline", *baseline] if baseline else [])


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The summary as a table, scores times 100."""
    heads, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return heads, [[*row[:2], *(f"{100 * float(score):.2f}" if score else "–" for score in row[2:])] for row in rows]
