"""What a published checkpoint is, decided in one place: by its files, and by what the user says of it.

A chain of repositories makes up a source: the model at the bottom and the adapters that are merged into it, in their
order. The uppermost of them that says how texts are embedded decides; settings that the user names win over it. What
none of them says is asked for by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..foreign import read_json_object
from ..hparams.embedding import EmbeddingOptions
from ..hparams.option import make_options
from ..hparams.source import SOURCE_SETTINGS, SourceOptions
from ..hparams.suggestion import suggest
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from .adapter_chain import find_chain
from .attention_pool import ATTENTION_POOL_NAME, AttentionPoolShape
from .llm2vec_adapters import LLM2VEC_SETTINGS
from .llm2vec_settings import embedder_settings
from .presets import find_preset
from .repository import MODEL_CONFIG_NAME, Repository
from .sentence_transformers_folder import (
    MODULES_NAME,
    find_attention,
    is_sentence_transformers_folder,
    read_sentence_transformers_folder,
)
from .weights import ADAPTER_CONFIG_NAME


Kind = Literal["checkpoint", "llm2vec", "pooling-and-attention", "sentence-transformers", "adapter", "model"]

TITLES: dict[Kind, str] = {
    "checkpoint": "checkpoint of llamafactory-embed",
    "llm2vec": "LLM2Vec",
    "pooling-and-attention": "Pooling-and-Attention",
    "sentence-transformers": "sentence-transformers folder",
    "adapter": "adapter",
    "model": "language model",
}
NEUTRAL_TEMPLATE = "verbatim"  # an instruction stands in front of its text as it is
PA_MAX_LENGTH = 512  # tokens of any text in Pooling-and-Attention's evaluation
# Encoders that transformers can also make a causal language model of.
ENCODERS_WITH_HEAD = ("bert", "roberta", "xlm-roberta", "modernbert", "electra", "camembert")
LLM2VEC_NAME = "LLM2Vec-"  # in the names of the authors' repositories
LLM2VEC_CLASSES = ("BiModel", "EncoderModel")  # how the classes end that its adapters were trained on


@dataclass(frozen=True)
class Source:
    """What a name stands for."""

    name: str
    kind: Kind
    model: Repository
    adapters: tuple[Repository, ...]
    own: Repository
    """The part of the chain that says how texts are embedded; the uppermost one where none does."""
    config: EmbeddingConfig

    @property
    def chain(self) -> tuple[Repository, ...]:
        """From the bottom to the top."""
        return (self.model, *self.adapters)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the uppermost tokenizer."""
        for each in reversed(self.chain):
            if each.has_tokenizer:
                return each.folder
        raise ValueError(f"{self.name} holds no tokenizer: copy tokenizer.json and tokenizer_config.json beside it.")

    @property
    def description(self) -> str:
        """One line that says what was taken, and how it is read."""
        title = TITLES[self.kind]
        if self.kind in ("checkpoint", "sentence-transformers"):
            title += f" {self.name}"
        if self.adapters:
            names = " → ".join(Path(each.name).name for each in self.adapters)
            chain = "adapter chain" if len(self.adapters) > 1 else "adapter"
            title = f"{title}: {chain} {names} on {self.model.name}"
        elif self.kind not in ("checkpoint", "sentence-transformers"):
            title += f" {self.model.name}"
        return f"{title}, {self.config.pooling} pooling, {self.config.attention}"


def find_source(name: str | Path, settings: Mapping[str, Any] | None = None, **hub: Any) -> Source:
    """Decide what `name` is: a folder, a name on the hub, or `name@revision` there. Only small files are read.

    `settings` are values of `EmbeddingConfig` by their names, and `adapters`, a list of adapters on top. `hub` says
    how the hub is asked (`token`, `cache_dir`).
    """
    given = check_settings(settings or {})
    chain = find_chain(name, given.pop("adapters", None), given.pop("base_model", None), hub)
    kind, own = find_kind(chain)
    config = configure(kind, own, chain, given)
    return Source(str(name), kind, chain[0], tuple(chain[1:]), own, config)


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are set; refuses names and values that no embedder has."""
    given = {name: value for name, value in settings.items() if value is not None}
    known = {field.name for field in dataclasses.fields(EmbeddingConfig)} | {"adapters"}
    for name in given:
        if name not in known:
            raise ValueError(f"There is no setting `{name}` of an embedder{suggest(name, known)}")
    make_options(SourceOptions, {name: value for name, value in given.items() if name in SOURCE_SETTINGS})
    return given


# --------------------------------------------------------------------------------------------------------------------
# The kind
# --------------------------------------------------------------------------------------------------------------------


def find_kind(chain: list[Repository]) -> tuple[Kind, Repository]:
    """The uppermost part of the chain that says how texts are embedded, and in whose words."""
    for repository in reversed(chain):
        kinds = kinds_of(repository)
        if len(kinds) > 1:
            raise ValueError(
                f"{repository.name} mixes the layouts of {' and '.join(TITLES[kind] for kind in kinds)}: keep the "
                "files of one of them."
            )
        if kinds:
            return kinds[0], repository
    top = chain[-1]
    if top.is_adapter:
        return "adapter", top
    if not top.has(MODEL_CONFIG_NAME):
        known = (CONFIG_NAME, MODULES_NAME, ADAPTER_CONFIG_NAME, MODEL_CONFIG_NAME)
        raise ValueError(f"{top.name} is not a checkpoint of an embedder: it holds none of {', '.join(known)}.")
    return "model", top


def kinds_of(repository: Repository) -> list[Kind]:
    """Whose files lie there; what we have written is ours, whatever else lies beside it."""
    if repository.has(CONFIG_NAME):
        return ["checkpoint"]
    if repository.is_adapter and (repository.has("model.safetensors") or repository.has("pytorch_model.bin")):
        return ["adapter", "model"]
    kinds: list[Kind] = []
    if repository.is_adapter and find_attention_pool(repository) is not None:
        kinds.append("pooling-and-attention")
    if is_llm2vec(repository):
        kinds.append("llm2vec")
    if is_sentence_transformers_folder(repository.folder):
        kinds.append("sentence-transformers")
    return kinds


def is_llm2vec(repository: Repository) -> bool:
    """Whether LLM2Vec has written it, by its settings or by the class that its adapter was trained on."""
    if repository.has(LLM2VEC_SETTINGS):
        return True
    mapping = repository.read_json(ADAPTER_CONFIG_NAME).get("auto_mapping") or {}
    trained_on = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return repository.is_adapter and (
        str(trained_on).endswith(LLM2VEC_CLASSES) or LLM2VEC_NAME in Path(repository.name).name
    )


def find_attention_pool(repository: Repository) -> Path | None:
    """The pooler of Pooling-and-Attention, None where there is none."""
    path = repository.folder / ATTENTION_POOL_NAME
    return path if path.is_file() else None


# --------------------------------------------------------------------------------------------------------------------
# The settings
# --------------------------------------------------------------------------------------------------------------------


def configure(kind: Kind, own: Repository, chain: list[Repository], given: Mapping[str, Any]) -> EmbeddingConfig:
    """How texts are embedded: what the source says, what the user says, and for the rest what is neutral."""
    if kind == "checkpoint":
        config = EmbeddingConfig.load(own.folder)
        check_record(config, own)
        return dataclasses.replace(config, **given)
    names: dict[str, Any] = {"base_model": chain[0].name, "merged_adapters": [each.name for each in chain[1:-1]]}
    preset = find_preset(own.name, own.folder) if kind in ("sentence-transformers", "model") else None
    if kind == "sentence-transformers":
        known = {} if preset is None else preset.settings(own.folder)
        return read_sentence_transformers_folder(own.folder, known | dict(given))
    if preset is not None:
        return dataclasses.replace(preset.config(own.folder), **given)
    if kind == "llm2vec":
        found = read_llm2vec(own, chain)
    elif kind == "pooling-and-attention":
        found = read_pooling_and_attention(own, given)
    else:
        found = read_plain(chain, given)
    neutral = EmbeddingConfig.from_options(EmbeddingOptions(query_template=NEUTRAL_TEMPLATE), cutoff_len=512)
    return dataclasses.replace(neutral, **names, **(found | dict(given)))


def check_record(config: EmbeddingConfig, own: Repository) -> None:
    """Refuse values that this release does not know, with the file that holds them."""
    values = {name: getattr(config, name) for name in ("pooling", "attention", "sliding_window")}
    try:
        make_options(SourceOptions, values)
    except ValueError as error:
        raise ValueError(f"{own.folder / CONFIG_NAME}: {error}") from error


def read_llm2vec(own: Repository, chain: list[Repository]) -> dict[str, Any]:
    """LLM2Vec's settings, and the prompts that it writes around the texts of some models."""
    path = own.folder / LLM2VEC_SETTINGS
    saved = read_json_object(path) if path.is_file() else {}
    model = chain[0]
    named = chain[1].read_name(ADAPTER_CONFIG_NAME, "base_model_name_or_path") if len(chain) > 1 else None
    base = named or model.read_name(MODEL_CONFIG_NAME, "_name_or_path") or model.name
    return embedder_settings(saved, str(path), base, model.read_name(MODEL_CONFIG_NAME, "model_type"))


def read_pooling_and_attention(own: Repository, given: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of the pooler. What a token attends to is written nowhere."""
    path = own.folder / ATTENTION_POOL_NAME
    shape = AttentionPoolShape.of_file(path)
    if "attention" not in given:
        raise ValueError(
            f"{path} does not say which design of Pooling-and-Attention it belongs to: name `attention`, `causal` for "
            "designs 2 and 3, `bidirectional` for 4 and 5."
        )
    heads, head_size = shape.find_heads(given.get("latent_heads"), path)
    return {
        "pooling": shape.pooling,
        "latents": shape.latents,
        "latent_heads": heads,
        "latent_head_size": head_size,
        "query_max_length": PA_MAX_LENGTH,
        "document_max_length": PA_MAX_LENGTH,
    }


def read_plain(chain: list[Repository], given: Mapping[str, Any]) -> dict[str, Any]:
    """A model that is no embedder yet, or does not say so: its pooling must be named, and its attention unless its
    architecture decides."""
    top, model = chain[-1], chain[0]
    found: dict[str, Any] = {}
    if "attention" not in given and is_encoder_model(model):
        found["attention"] = "bidirectional"
    asked = [name for name in ("pooling", "attention") if name not in {**found, **given}]
    if asked:
        what = "an adapter" if top.is_adapter else "a language model"
        names = " and ".join(f"`{name}`" for name in asked)
        raise ValueError(
            f"{top.name} is {what} that does not say how it embeds: name {names} "
            "(and `query_template`, if it was trained with one)."
        )
    longest = readable_length(chain)
    return found | {"query_max_length": longest, "document_max_length": longest}


def is_encoder_model(model: Repository) -> bool:
    """Whether a model's tokens see the whole text by its architecture, as BERT's do."""
    kind = model.read_name(MODEL_CONFIG_NAME, "model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in ENCODERS_WITH_HEAD:
        return False
    return find_attention(model.folder, AutoConfig.from_pretrained(model.folder)) == "bidirectional"


def readable_length(chain: list[Repository]) -> int:
    """As many tokens as tokenizer and model allow."""
    tokenizer = next((each.read_json("tokenizer_config.json") for each in reversed(chain) if each.has_tokenizer), {})
    model = chain[0].read_json(MODEL_CONFIG_NAME)
    model = model.get("text_config") or model  # of one that also reads images
    limits = (tokenizer.get("model_max_length"), model.get("max_position_embeddings"), model.get("n_positions"))
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and limit > 0]
    return min(known, default=PA_MAX_LENGTH)
