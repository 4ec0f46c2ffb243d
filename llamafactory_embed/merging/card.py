"""The card of a merged checkpoint: what was merged, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..files import write_text
from .plan import Merge


METHODS = {
    "linear": "the weighted mean of their weights",
    "slerp": "spherical interpolation between their weights",
}


def write_merge_card(folder: Path, name: str, merge: Merge, note: str = "") -> None:
    """Write `README.md`."""
    rows = [
        f"| {shown_name(checkpoint)} | {weight:.4f} |"
        for checkpoint, weight in zip(merge.checkpoints, merge.weights, strict=True)
    ]
    lines = [
        f"Merged by llamafactory-embed, a plugin of LLaMA-Factory: {METHODS[merge.method]}"
        f"{', as one adapter' if merge.stays_adapter else ''}.",
        "",
        "| checkpoint | weight |",
        "|---|---|",
        *rows,
        "",
        *([note, ""] if note else []),
    ]
    header = yaml.safe_dump(_header(merge), sort_keys=False, allow_unicode=True).strip()
    write_text(folder / "README.md", "\n".join(["---", header, "---", "", f"# {name}", "", *lines]))


def shown_name(checkpoint: Path) -> str:
    """The end of a path: where a checkpoint lay on this machine concerns nobody else."""
    return "/".join(Path(os.path.abspath(checkpoint)).parts[-2:])


def _header(merge: Merge) -> Mapping[str, Any]:
    return {"tags": ["merge", "llama-factory"], "base_model_relation": "merge"}
