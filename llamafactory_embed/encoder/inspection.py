"""What a source is and what can be done with it, from its small files and the headers of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import get_safetensors_metadata
from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

from ..foreign import parse_yaml, read_foreign_text
from ..loading.adapted_checkpoint import is_wrapped
from ..loading.adapter_chain import find_chain
from ..loading.headers import Weights, measure_weights, name_of
from ..loading.repository import MODEL_CONFIG_NAME, Repository
from ..loading.source import TITLES, find_kind, find_source
from ..model.embedding_config import EmbeddingConfig
from ..model.families import find_family
from ..model.mask_token import RECORD_NAME


CARD_NAME = "README.md"
HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model")  # how architectures call the size of their states
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Inspected:
    """What is known of a source without its weights."""

    source: str
    kind: str
    model: str
    adapters: list[str]
    architecture: str | None
    embeds: dict[str, Any] | None
    """Attention, pooling, prompts, lengths and sizes; None where something must be named first."""
    asks: str | None
    """What must be named before it embeds."""
    parameters: int | None
    size: int | None
    """Bytes of the weight files; None for those on the hub."""
    dtypes: list[str]
    licence: str | None
    uses: list[str]


def inspect_source(name: str, settings: Mapping[str, Any] | None = None) -> Inspected:
    """Read the small files of a source, and the headers of its weights."""
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    chain = find_chain(name, given.get("adapters"), given.get("base_model"), {})
    kind, _ = find_kind(chain)
    model = chain[0].read_json(MODEL_CONFIG_NAME)
    architecture = chain[0].read_name(MODEL_CONFIG_NAME, "model_type")
    try:
        config, asks = find_source(name, given).config, None
    except ValueError as error:
        config, asks = None, str(error)
    weights = [weights_of(each) for each in chain]
    known = [each for each in weights if each is not None]
    is_measured = len(known) == len(weights)
    sizes = [each.size for each in known]
    return Inspected(
        source=name,
        kind=TITLES[kind],
        model=chain[0].name,
        adapters=[each.name for each in chain[1:]],
        architecture=architecture,
        embeds=None if config is None else describe_embedding(config, model),
        asks=asks,
        parameters=sum(each.parameters for each in known) if is_measured else None,
        size=sum(sizes) if is_measured and all(sizes) else None,
        dtypes=sorted({dtype for each in known for dtype in each.dtypes}),
        licence=next((found for each in reversed(chain) if (found := licence_of(each)) is not None), None),
        uses=list_uses(chain, config, architecture),
    )


def describe_embedding(config: EmbeddingConfig, model: Mapping[str, Any]) -> dict[str, Any]:
    """How texts are embedded."""
    hidden = next((model[name] for name in HIDDEN_SIZES if name in model), None)
    return {
        "attention": config.attention,
        "pooling": config.pooling,
        "multi_vector": config.multi_vector,
        "skip_instruction": config.skip_instruction,
        "query_template": config.query_template,
        "document_template": config.document_template,
        "instructions": config.instructions,
        "query_max_length": config.query_max_length,
        "document_max_length": config.document_max_length,
        "dimension": None if hidden is None else config.embedding_size(hidden),
        "matryoshka_dims": config.matryoshka_dims,
        "normalize": config.normalize,
        "similarity": config.similarity,
    }


def weights_of(repository: Repository) -> Weights | None:
    """From the headers of the files, or from those that the hub sends; None where it sends none."""
    if repository.is_local:
        return measure_weights(repository.folder)
    try:
        found = get_safetensors_metadata(repository.name, revision=repository.revision)
    except (HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError, OSError, ValueError):
        return None
    return Weights(sum(found.parameter_count.values()), 0, tuple(sorted(map(name_of, found.parameter_count))))


def licence_of(repository: Repository) -> str | None:
    """What the model card says in its first lines, for the hub to read."""
    if not repository.has(CARD_NAME):
        return None
    before, dashes, rest = read_foreign_text(repository.folder / CARD_NAME).partition("---\n")
    header, end, _ = rest.partition("\n---")
    if before.strip() or not dashes or not end:
        return None
    try:
        values = parse_yaml(header)
    except ValueError:
        return None
    return str(values["license"]) if isinstance(values, dict) and values.get("license") else None


def list_uses(chain: list[Repository], config: EmbeddingConfig | None, architecture: str | None) -> list[str]:
    """What this package does with it, in its options' words."""
    top, family = chain[-1], find_family(architecture or "")
    uses = []
    if config is not None:
        uses += ["Encoder, eval, mine", "export (sentence-transformers, servers)"]
        if top.is_adapter:
            uses.append("export --layout adapter")
    uses.append("adapter_name_or_path, model_name_or_path" if top.is_adapter else "model_name_or_path")
    is_diffusion = family is not None and family.is_diffusion
    is_wrapper = chain[0].is_local and is_wrapped(chain[0].folder)
    if is_diffusion or is_wrapper or top.has(RECORD_NAME):
        uses.append("sample, chat (stage: ddm)")
    return uses


def describe_source(found: Inspected) -> list[str]:
    """A line for each thing known."""
    rows: dict[str, Any] = {
        "kind": found.kind,
        "model": f"{found.model} ({found.architecture or 'architecture not named'})",
        "adapters": " → ".join(found.adapters),
        "parameters": None if found.parameters is None else f"{found.parameters:,} ({', '.join(found.dtypes)})",
        "size on disk": None if found.size is None else format_bytes(found.size),
        "licence": found.licence or "not named in its card",
        **{name.replace("_", " "): shown(name, value) for name, value in (found.embeds or {}).items()},
        "before it embeds": found.asks,
        "good for": "; ".join(found.uses),
    }
    width = max(map(len, rows))
    return [found.source, *(f"  {name:<{width}}  {value}" for name, value in rows.items() if value not in (None, ""))]


def shown(name: str, value: object) -> str | None:
    """A value in a table, templates with their line breaks visible."""
    if isinstance(value, dict):
        return "; ".join(f"{task}: {text!r}" for task, text in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return None
    return repr(value) if name.endswith("_template") else str(value)


def format_bytes(size: float) -> str:
    """1536 → 1.5 kB."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == UNITS[0] else f"{size:.1f} {unit}"
