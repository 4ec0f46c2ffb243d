"""The model card of an exported folder: what the model is, how programs load it, how well it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..cards.header import (
    CARD_NAME,
    CardHeader,
    Relation,
    hub_name,
    read_card_header,
    read_evaluations,
    write_card_file,
)
from ..cards.sections import CITATION, DATA, SAMPLES, SETTINGS, property_table, sections_of
from ..foreign import read_json_object
from ..model.embedding_config import EmbeddingConfig
from .serving import DOCUMENT, QUERY, Serving, list_commands


METRICS_FILE = "eval_results.json"  # written by a training run beside its checkpoint
CARRIED = (DATA, SAMPLES, SETTINGS, CITATION)  # sections of a checkpoint's card


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
    lines = [
        introduce(config),
        "",
        *describe_properties(config, model, serving),
        "",
        "## Use",
        "",
        *usage(name, config, serving, model),
        *[line for remark in remarks for line in (remark, "")],
        *describe_prompts(serving),
    ]
    write_card_page(folder, name, checkpoint, config, "sentence-transformers", "finetune", lines)


def write_card_page(
    folder: Path,
    name: str,
    checkpoint: str | Path,
    config: EmbeddingConfig,
    library: str,
    relation: Relation,
    lines: Sequence[str],
) -> None:
    """Write `README.md`: what the hub reads, a title, lines that say what the folder is, and what the card of the
    training run knows: its data, settings, metrics, and what to cite."""
    page = [*lines, *metrics_of_run(checkpoint), *carried_sections(checkpoint)]
    write_card_file(folder, name, make_header(checkpoint, config, library, relation), page)


def usage(name: str, config: EmbeddingConfig, serving: Serving, model: PretrainedConfig) -> list[str]:
    """Code and commands."""
    trust = ", trust_remote_code=True" if serving.needs_code else ""
    loader = "MultiVectorEncoder" if config.multi_vector else "SentenceTransformer"
    lines = [
        "With sentence-transformers:",
        "",
        "```python",
        f"from sentence_transformers import {loader}",
        "",
        f'model = {loader}("{name}"{trust})',
        'queries = model.encode_query(["a query"])',
        'documents = model.encode_document(["a document", "another one"])',
        "print(model.similarity(queries, documents))",
        "```",
        "",
    ]
    lines += [
        "With llamafactory-embed:",
        "",
        "```python",
        "from llamafactory_embed import Encoder",
        "",
        f'encoder = Encoder("{name}")',
        'print(encoder.encode(["a document"]))',
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


def make_header(checkpoint: str | Path, config: EmbeddingConfig, library: str, relation: Relation) -> CardHeader:
    """What the hub reads: what the checkpoint's own card says, which its owner may have completed, for this folder."""
    known = read_card_header(checkpoint)
    return CardHeader(
        library=library,
        tags=["sentence-transformers", "feature-extraction", "text-embedding"],
        pipeline_tag="sentence-similarity",
        base_model=portable_base(config) or hub_name(known.get("base_model")),
        relation=relation,
        license=known.get("license"),
        languages=_as_list(known.get("language")),
        datasets=_as_list(known.get("datasets")),
        evaluations=read_evaluations(checkpoint),
    )


def carried_sections(checkpoint: str | Path) -> list[str]:
    """The sections of the checkpoint's card that hold for the export, too."""
    path = Path(checkpoint) / CARD_NAME
    return sections_of(path.read_text(encoding="utf-8"), CARRIED) if path.is_file() else []


def portable_base(config: EmbeddingConfig) -> str | None:
    """The base model's name on the hub, None where it is a folder."""
    return hub_name(config.base_model)


def metrics_of_run(checkpoint: str | Path) -> list[str]:
    """A section on the evaluation at the end of the training run, if there was one."""
    path = Path(checkpoint) / METRICS_FILE
    if not path.is_file():
        return []
    figures = read_json_object(path)
    rows = [
        f"| {name.removeprefix('eval_')} | {value:.4f} |"
        for name, value in figures.items()
        if isinstance(value, float) and not name.endswith(("runtime", "per_second")) and name != "epoch"
    ]
    return ["## Retrieval on held-out rows", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def introduce(config: EmbeddingConfig) -> str:
    """The first sentence."""
    base = portable_base(config)
    made_of = f" made of `{base}`" if base else ""
    return f"A text embedder{made_of}, trained with llamafactory-embed, a plugin of LLaMA-Factory."


def describe_properties(config: EmbeddingConfig, model: PretrainedConfig, serving: Serving) -> list[str]:
    """A table of what the model does with a text."""
    properties = {
        "attention": config.attention,
        "vectors of a text": "one for every token" if config.multi_vector else "one",
        "pooling": config.pooling + (", without the instruction" if config.skip_instruction else ""),
        "size of an embedding": str(serving.dimensions or config.embedding_size(model.hidden_size)),
        "longest query / document": f"{serving.query_length} / {serving.document_length} tokens",
        "unit length": "yes" if config.normalize else "no",
        "compared by": "MaxSim, the mean over the query's vectors" if config.multi_vector else config.similarity,
    }
    if config.matryoshka_dims:
        properties["may be cut to"] = ", ".join(map(str, config.matryoshka_dims))
    return property_table(properties)


def describe_prompts(serving: Serving) -> list[str]:
    """The section on prompts."""
    return [
        "## Prompts",
        "",
        "| name | stands in front of the text |",
        "|---|---|",
        *(f"| {prompt_name} | {_code(prompt)} |" for prompt_name, prompt in serving.prompts.items()),
        "",
    ]


def _as_list(value: Any) -> list[str]:
    """A value of a card's header, which may be one text or several."""
    return [value] if isinstance(value, str) else list(value or [])


def _code(text: str) -> str:
    """A prompt in a cell of a table, its line breaks and spaces visible."""
    shown = json.dumps(text, ensure_ascii=False)
    return f"`{shown}`".replace("|", "\\|")
