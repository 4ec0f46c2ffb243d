"""The model card of an exported folder: what the model is, how programs load it, how well it does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from ..files import write_text
from ..model.embedding_config import EmbeddingConfig
from .serving import DOCUMENT, QUERY, Serving, list_commands


METRICS_FILE = "eval_results.json"  # written by a training run beside its checkpoint
CARD_NAME = "README.md"


def write_layout_card(
    folder: Path,
    name: str,
    checkpoint: str | Path,
    config: EmbeddingConfig,
    model: PretrainedConfig,
    serving: Serving,
    remarks: Sequence[str],
) -> None:
    """Write `README.md` into an export of sentence-transformers' layout."""
    size = serving.dimensions or config.embedding_size(model.hidden_size)
    lines = [
        f"A text embedder{_made_of(config)}, trained with llamafactory-embed, a plugin of LLaMA-Factory.",
        "",
        "| | |",
        "|---|---|",
        f"| attention | {config.attention} |",
        f"| pooling | {config.pooling}{', without the instruction' if config.skip_instruction else ''} |",
        f"| size of an embedding | {size} |",
        f"| longest query / document | {serving.query_length} / {serving.document_length} tokens |",
        f"| unit length | {'yes' if config.normalize else 'no'} |",
        f"| compared by | {config.similarity} |",
        *([f"| may be cut to | {', '.join(map(str, config.matryoshka_dims))} |"] if config.matryoshka_dims else []),
        "",
        "## Use",
        "",
        *usage(name, config, serving, model),
        *[line for remark in remarks for line in (remark, "")],
        "## Prompts",
        "",
        "| name | stands in front of the text |",
        "|---|---|",
        *(f"| {prompt_name} | {_code(prompt)} |" for prompt_name, prompt in serving.prompts.items()),
        "",
    ]
    write_card_page(folder, name, checkpoint, config, "sentence-transformers", lines)


def write_card_page(
    folder: Path, name: str, checkpoint: str | Path, config: EmbeddingConfig, library: str, lines: Sequence[str]
) -> None:
    """Write `README.md`: what the hub reads, a title, lines that say what the folder is, and the run's metrics."""
    header = yaml.safe_dump(make_header(config, library), sort_keys=False, allow_unicode=True).strip()
    page = ["---", header, "---", "", f"# {name}", "", *lines, *metrics_of_run(checkpoint)]
    write_text(folder / CARD_NAME, "\n".join(page).rstrip("\n") + "\n")


def usage(name: str, config: EmbeddingConfig, serving: Serving, model: PretrainedConfig) -> list[str]:
    """Code and commands."""
    trust = ", trust_remote_code=True" if serving.needs_code else ""
    lines = [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}"{trust})',
        'queries = model.encode_query(["a query"])',
        'documents = model.encode_document(["a document", "another one"])',
        "print(model.similarity(queries, documents))",
        "```",
        "",
    ]
    commands = list_commands(config, serving, model)
    if commands:
        listed = [f"# {server}\n{command.format(folder=name)}" for server, command in commands.items()]
        lines += ["Servers read the same files (these commands were not run when the folder was checked):", ""]
        lines += ["```bash", *"\n".join(listed).split("\n"), "```", ""]
        lines += [
            f"They embed the text that they are sent: write the prompt `{QUERY}` (or that of a task) in front of a "
            f"query, and `{DOCUMENT}` in front of a document.",
            "",
        ]
    return lines


def make_header(config: EmbeddingConfig, library: str) -> dict[str, Any]:
    """What the hub reads. A base model that is a folder of the machine that trained is left out."""
    header: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "text-embedding", "llama-factory"],
    }
    base = portable_base(config)
    return header if base is None else header | {"base_model": base}


def portable_base(config: EmbeddingConfig) -> str | None:
    """The base model's name on the hub, None where it is a folder."""
    base = config.base_model
    return None if base is None or os.path.exists(base) or base.count("/") > 1 else base


def metrics_of_run(checkpoint: str | Path) -> list[str]:
    """A section on the evaluation at the end of the training run, if there was one."""
    path = Path(checkpoint) / METRICS_FILE
    if not path.is_file():
        return []
    figures = json.loads(path.read_text("utf-8"))
    rows = [
        f"| {name.removeprefix('eval_')} | {value:.4f} |"
        for name, value in figures.items()
        if isinstance(value, float) and not name.endswith(("runtime", "per_second")) and name != "epoch"
    ]
    return ["## Retrieval on held-out rows", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def _made_of(config: EmbeddingConfig) -> str:
    base = portable_base(config)
    return f" made of `{base}`" if base else ""


def _code(text: str) -> str:
    """A prompt in a cell of a table, its line breaks and spaces visible."""
    shown = json.dumps(text, ensure_ascii=False)
    return f"`{shown}`".replace("|", "\\|")
