"""The page about a chain: its steps, what each of them achieved, and the table of its evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_text
from ..pages.drawing import curve
from ..pages.page import render_page, render_table
from .definition import Chain, ChainStep
from .run import Done, shown_command


PAGE_NAME = "report.html"
TRAINER_STATE = "trainer_state.json"  # what transformers keeps of a training
RESULTS = "all_results.json"
SUMMARY = "summary.json"  # of `llamafactory-embed eval`
NOT_SHOWN = ("runtime", "per_second", "flos", "epoch")


def write_chain_page(chain: Chain, done: Mapping[str, Done]) -> Path:
    """Write the page beside the steps' folders."""
    path = chain.output_dir / PAGE_NAME
    write_text(path, render_report_of(chain, done))
    return path


def render_report_of(chain: Chain, done: Mapping[str, Done]) -> str:
    """The page. Whatever comes from files is escaped."""
    minutes = sum(each.seconds for each in done.values()) / 60
    parts = [
        f"<h1>{escape(chain.source.stem)}</h1>",
        f'<p class="soft">{len(chain.steps)} steps, {minutes:.1f} minutes: {escape(str(chain.source))}</p>',
        render_table(
            ["step", "what it does", "minutes", "folder"], [_row(step, done.get(step.name)) for step in chain.steps]
        ),
    ]
    for step in chain.steps:
        section = "".join(_section(step))
        if section:
            parts.append(f"<h2>{step.number}. {escape(step.name)}</h2>{section}")
    return render_page(chain.source.stem, parts)


def _row(step: ChainStep, done: Done | None) -> dict[str, str]:
    return {
        "step": step.name,
        "what it does": f"{step.kind} {', '.join(step.needs or step.subjects)}",
        "minutes": "" if done is None else f"{done.seconds / 60:.1f}",
        "folder": str(step.output),
    }


def _section(step: ChainStep) -> Iterator[str]:
    if step.kind == "train":
        losses = logged_losses(step.output)
        if losses:
            yield f'<figure class="box">{curve(losses, "step")}</figure>'
        figures = [
            {"metric": name, "value": f"{value:.4f}"}
            for name, value in _read(step.output / RESULTS).items()
            if isinstance(value, float) and not name.endswith(NOT_SHOWN)
        ]
        if figures:
            yield render_table(["metric", "value"], figures)
    if step.kind == "eval":
        yield _scores(_read(step.output / SUMMARY))
    yield f"<pre>{escape(shown_command(step))}</pre>"


def logged_losses(folder: Path) -> list[tuple[int, float]]:
    """The logged training losses, by steps."""
    history = _read(folder / TRAINER_STATE).get("log_history", [])
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def _scores(summary: Mapping[str, Any]) -> str:
    models = summary.get("models", [])
    rows = [
        {"task": line["task"], "metric": line["metric"]}
        | {model: f"{100 * score:.2f}" for model, score in line["scores"].items()}
        for line in summary.get("scores", [])
    ]
    return render_table(["task", "metric", *models], rows) if rows else ""


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
