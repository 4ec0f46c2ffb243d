"""Model cards: what a checkpoint was made of, how it is read, how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ..files import write_text
from ..model.mask_token import MaskedTokenRecord


def write_card(
    folder: str | Path,
    base_model: str,
    what_it_is: str,
    tags: Sequence[str],
    properties: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Write the card of a checkpoint that is not an embedder."""
    lines = [
        f"Made of `{base_model}` with llamafactory-embed, a plugin of LLaMA-Factory. {what_it_is}",
        "",
        *property_table(properties),
        "",
        "The recipe is in `recipe.yaml`.",
        *metrics_section("On held-out data", metrics),
    ]
    write_page(folder, {"base_model": base_model}, tags, lines)


def write_predictor_card(
    folder: str | Path,
    base_model: str,
    what_it_is: str,
    tags: Sequence[str],
    record: MaskedTokenRecord,
    datasets: Sequence[str],
    metrics: Mapping[str, float],
) -> None:
    """Write the card of a language model that predicts masked tokens."""
    properties = {
        "attention": "bidirectional",
        "mask token": f"`{record.mask_token}`, id {record.mask_token_id}",
        "a token is predicted at": "the position before it" if record.shift else "its own position",
        "data": ", ".join(datasets) or "see the recipe",
    }
    write_card(folder, base_model, what_it_is, tags, properties, metrics)


def property_table(properties: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in properties.items())]


def metrics_section(title: str, metrics: Mapping[str, float]) -> list[str]:
    """A heading and a table; nothing where nothing was measured."""
    if not metrics:
        return []
    rows = [f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in metrics.items()]
    return ["", f"## {title}", "", "| metric | value |", "|---|---|", *rows]


def write_page(folder: str | Path, header: Mapping[str, str], tags: Sequence[str], lines: Sequence[str]) -> None:
    """Write `README.md` into a checkpoint, with what hubs read at its top."""
    header = {"library_name": "llamafactory-embed", **header}
    all_tags = {"tags": [*tags, "llama-factory", "llamafactory-embed"]}
    top = ["---", yaml.safe_dump({**header, **all_tags}, sort_keys=False).strip(), "---", ""]
    write_text(Path(folder) / "README.md", "\n".join([*top, f"# {Path(folder).name}", "", *lines]) + "\n")
