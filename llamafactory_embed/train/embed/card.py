"""The model card of an embedder: what it is, what it was trained on, how well it does, how to load it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from ...data.retrieval.reader import StreamedTask
from ...data.retrieval.rows import Task
from ...model.embedding_config import EmbeddingConfig


def write_model_card(
    folder: str | Path,
    config: EmbeddingConfig,
    base_model: str,
    tasks: Sequence[Task | StreamedTask],
    metrics: dict[str, float],
) -> None:
    """Write `README.md` into the checkpoint."""
    header = {
        "library_name": "llamafactory-embed",
        "pipeline_tag": "sentence-similarity",
        "base_model": base_model,
        "tags": ["text-embedding", "llama-factory", "llamafactory-embed"],
    }
    first_task = next(iter(config.instructions), None)
    query = f'encoder.encode(["a query"], task="{first_task}")' if first_task else 'encoder.encode(["a query"])'
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {Path(folder).name}",
        "",
        f"A text embedder made of `{base_model}` with llamafactory-embed, a plugin of LLaMA-Factory.",
        "",
        "```python",
        "from llamafactory_embed import Encoder",
        "",
        f'encoder = Encoder("{folder}")',
        f"queries = {query}",
        'documents = encoder.encode(["a document", "another one"])',
        "print(queries @ documents.T)",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| attention | {config.attention} |",
        f"| pooling | {config.pooling} |",
        f"| longest query / document | {config.query_max_length} / {config.document_max_length} tokens |",
        f"| unit length | {'yes' if config.normalize else 'no'} |",
        f"| compared by | {config.similarity} |",
        "",
        "## Training data",
        "",
        "| task | rows | instruction |",
        "|---|---|---|",
        *(f"| {task.name} | {_rows(task)} | {_cell(task.instruction)} |" for task in tasks),
        "",
        "The recipe is in `recipe.yaml`.",
    ]
    if metrics:
        lines += ["", "## Retrieval on held-out rows", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in metrics.items()]
    temporary = Path(folder) / "README.md.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, Path(folder) / "README.md")


def _rows(task: Task | StreamedTask) -> str:
    return str(len(task.rows)) if isinstance(task, Task) else "a stream"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
