"""The model card of an embedder: what it is, what it was trained on, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from ...cards.sections import DATA, cell, metrics_section, property_table, samples_section
from ...data.retrieval.rows import Task
from ...data.retrieval.stream import StreamedTask
from ...model.embedding_config import EmbeddingConfig
from ..card import RunFacts


def write_model_card(
    facts: RunFacts,
    config: EmbeddingConfig,
    tasks: Sequence[Task | StreamedTask],
    evaluated: Sequence[str],
    metrics: dict[str, float],
    works: Sequence[str],
) -> None:
    """Write `README.md` into the checkpoint. `evaluated` are the tasks whose retrieval was measured."""
    properties = {
        "attention": config.attention,
        "pooling": config.pooling,
        "longest query / document": f"{config.query_max_length} / {config.document_max_length} tokens",
        "unit length": "yes" if config.normalize else "no",
        "compared by": config.similarity,
    }
    lines = [
        f"A text embedder made of `{facts.base_model}` with llamafactory-embed, a plugin of LLaMA-Factory.",
        "",
        *usage_of_checkpoint(facts.address, facts.name, config),
        *property_table(properties),
        "",
        f"## {DATA}",
        "",
        "| task | rows | instruction |",
        "|---|---|---|",
        *(f"| {cell(task.name)} | {_rows(task)} | {cell(task.instruction)} |" for task in tasks),
        *samples_section(("task", "query", "positive"), list_samples(tasks, facts.samples)),
        *metrics_section("Retrieval on held-out rows", metrics),
    ]
    facts.write(
        lines,
        works,
        "information-retrieval",
        evaluated,
        metrics,
        tags=["text-embedding", "feature-extraction"],
        pipeline_tag="sentence-similarity",
    )


def usage_of_checkpoint(address: str, name: str, config: EmbeddingConfig) -> list[str]:
    """How this checkpoint is loaded, and how other programs come to load it."""
    first_task = next(iter(config.instructions), None)
    readers = "sentence-transformers, vLLM and text-embeddings-inference load"
    if config.multi_vector:
        readers = "sentence-transformers (MultiVectorEncoder) loads"
    query = f'encoder.encode(["a query"], task="{first_task}")' if first_task else 'encoder.encode(["a query"])'
    return [
        "```python",
        "from llamafactory_embed import Encoder",
        "",
        f'encoder = Encoder("{address}")',
        f"queries = {query}",
        'documents = encoder.encode(["a document", "another one"])',
        "print(encoder.similarity(queries, documents))",
        "```",
        "",
        f"{readers} it after an export:",
        "",
        "```bash",
        f"llamafactory-embed export {address} {name}-export",
        "```",
        "",
    ]


def list_samples(tasks: Sequence[Task | StreamedTask], count: int) -> list[tuple[str, str, str]]:
    """Task, query and positive of the first rows of every task whose rows are held."""
    return [
        (task.name, row.query, row.positives[0] if row.positives else "")
        for task in tasks
        if isinstance(task, Task)
        for row in task.rows[:count]
    ]


def _rows(task: Task | StreamedTask) -> str:
    return str(len(task.rows)) if isinstance(task, Task) else "a stream"
