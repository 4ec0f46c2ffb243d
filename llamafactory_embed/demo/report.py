"""The demo's page: one file that needs no other and no network, in light and in dark."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path

from ..files import write_text
from ..hparams.secrets import secrets_of, without_secrets
from ..pages.drawing import bars, curve
from ..pages.page import render_page, with_code
from .results import METRICS, Metrics, SampleQuery


PAGE_NAME = "report.html"
PACKAGES = ("llamafactory-embed", "llamafactory", "torch", "transformers")


@dataclass(frozen=True)
class DemoOutcome:
    """All that the demo found out."""

    output: Path
    command: str
    steps: int
    seconds: float
    rows: Mapping[str, Metrics]
    """What was compared, the trained model last."""
    before: Sequence[SampleQuery]
    after: Sequence[SampleQuery]
    losses: Sequence[tuple[int, float]]
    remarks: Sequence[str]
    machine: str


def write_report(outcome: DemoOutcome) -> Path:
    """Write the page beside the checkpoint, without secrets."""
    path = outcome.output / PAGE_NAME
    write_text(path, without_secrets(render_report(outcome), secrets_of()))
    return path


def render_report(outcome: DemoOutcome) -> str:
    """The page. Whatever comes from data or recipe is escaped."""
    trained = list(outcome.rows)[-1]
    figures = {name: 100 * metrics["ndcg@10"] for name, metrics in outcome.rows.items()}
    title = "A language model became a text embedder"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{outcome.steps} training steps, {outcome.seconds / 60:.1f} minutes in all, on '
        f"{escape(outcome.machine)}. {with_code(' '.join(outcome.remarks))}</p>",
        "<h2>How well it finds the word for a definition (nDCG@10, held-out words)</h2>",
        f'<figure class="box">{bars(figures, trained)}</figure>',
        '<div class="wide">',
        compared_metrics(outcome.rows, trained),
        "</div>",
        "<h2>What lies next to a query</h2>",
        *(query_box(*pair) for pair in zip(outcome.before, outcome.after, strict=True)),
        "<h2>Training loss</h2>",
        f'<figure class="box">{curve(outcome.losses, "step")}</figure>',
        "<h2>Use it</h2>",
        f"<pre>{escape(usage_lines(outcome.output))}</pre>",
        "<h2>Run it again</h2>",
        f"<pre>{escape(outcome.command)}</pre>",
        f'<p class="soft">{escape(describe_versions_of(PACKAGES))}; {time.strftime("%Y-%m-%d %H:%M")}</p>',
    ]
    return render_page(title, parts)


def compared_metrics(rows: Mapping[str, Metrics], highlighted: str) -> str:
    """All metrics of all rows, in percent."""
    head = "".join(f"<th>{escape(name.replace('ndcg', 'nDCG').replace('mrr', 'MRR'))}</th>" for name in METRICS)
    lines = []
    for name, metrics in rows.items():
        cells = "".join(f"<td>{100 * metrics[metric]:.1f}</td>" for metric in METRICS)
        kind = ' class="best"' if name == highlighted else ""
        lines.append(f"<tr{kind}><td>{escape(name)}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def query_box(before: SampleQuery, after: SampleQuery) -> str:
    """A query with its neighbours before and after."""
    columns = "".join(
        f"<div><h4>{title}</h4><ol>"
        + "".join(f"<li>{escape(text)} <span>{score:.2f}</span></li>" for text, score in each.neighbours)
        + "</ol></div>"
        for title, each in (("before", before), ("after", after))
    )
    return f'<section class="box query"><h3>“{escape(after.query)}”</h3><div class="columns">{columns}</div></section>'


def usage_lines(output: Path) -> str:
    """The first lines of a program that uses the embedder."""
    return f'from llamafactory_embed import Encoder\n\nEncoder("{output}").encode(["some text"])'


def describe_versions_of(packages: Sequence[str]) -> str:
    """The packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def describe_machine() -> str:
    """What the demo ran on, and how fast that multiplies matrices: the number that its time depends on."""
    import torch

    from ..loading.checkpoint import default_device

    device = default_device()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{count_cores()} CPU cores ({platform.machine()})"
    return f"{name}, {measure_speed(device):.0f} GFLOP/s in float32"


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_speed(device: str, size: int = 1024, tries: int = 5) -> float:
    """GFLOP/s of a product of two matrices, the best of a few tries."""
    import torch

    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    fastest = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9
