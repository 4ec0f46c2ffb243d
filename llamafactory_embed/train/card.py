"""The model card of a checkpoint that is no embedder: what it was made of, how it is read, how well it does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml


def write_card(
    folder: str | Path,
    base_model: str,
    what_it_is: str,
    tags: Sequence[str],
    properties: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Write `README.md` into the checkpoint."""
    header = {
        "library_name": "llamafactory-embed",
        "base_model": base_model,
        "tags": [*tags, "llama-factory", "llamafactory-embed"],
    }
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {Path(folder).name}",
        "",
        f"Made of `{base_model}` with llamafactory-embed, a plugin of LLaMA-Factory. {what_it_is}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in properties.items()),
        "",
        "The recipe is in `recipe.yaml`.",
    ]
    if metrics:
        lines += ["", "## On held-out data", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in metrics.items()]
    temporary = Path(folder) / "README.md.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, Path(folder) / "README.md")
