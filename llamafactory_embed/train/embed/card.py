"""The model card of an embedder: what it is, what it was trained on, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.retrieval.rows import Task
from ...data.retrieval.stream import StreamedTask
from ...model.embedding_config import EmbeddingConfig
from ..card import metrics_section, property_table, write_page


def write_model_card(
    folder: str | Path,
    config: EmbeddingConfig,
    base_model: str,
    tasks: Sequence[Task | StreamedTask],
    metrics: dict[str, float],
) -> None:
    """Write `README.md` into the checkpoint."""
    first_task = next(iter(config.instructions), None)
    query = f'encoder.encode(["a query"], task="{first_task}")' if first_task else 'encoder.encode(["a query"])'
    properties = {
        "attention": config.attention,
        "pooling": config.pooling,
        "longest query / document": f"{config.query_max_length} / {config.document_max_length} tokens",
        "unit length": "yes" if config.normalize else "no",
        "compared by": config.similarity,
    }
    lines = [
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
        *property_table(properties),
        "",
        "## Training data",
        "",
        "| task | rows | instruction |",
        "|---|---|---|",
        *(f"| {task.name} | {_rows(task)} | {_cell(task.instruction)} |" for task in tasks),
        "",
        "The recipe is in `recipe.yaml`.",
        *metrics_section("Retrieval on held-out rows", metrics),
    ]
    header = {"pipeline_tag": "sentence-similarity", "base_model": base_model}
    write_page(folder, header, ["text-embedding"], lines)


def _rows(task: Task | StreamedTask) -> str:
    return str(len(task.rows)) if isinstance(task, Task) else "a stream"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
