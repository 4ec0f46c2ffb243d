"""The shape of a model, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..foreign import read_json_object
from .memory import ModelShape


# Names of the same number in the configurations of different families.
NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "intermediate": ("intermediate_size", "mlp_hidden_size", "n_inner"),
    "head_size": ("head_dim",),
    "vocabulary": ("vocab_size", "embedding_size"),
}


def read_shape(model: str) -> ModelShape:
    """The shape of a model in a folder, or of one of the hub: of its configuration alone, no weights."""
    path = Path(model) / "config.json"
    if not path.is_file():
        path = download_configuration(model)
    try:
        return shape_of_configuration(read_json_object(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"`--model {model}`: {path} cannot be read: {error}") from None


def download_configuration(model: str) -> Path:
    """`config.json` from the hub or its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise ValueError(
            f"`--model {model}` has no config.json that can be read here: name a folder that holds it, or a model of "
            "the hub while the hub can be reached."
        ) from None


def shape_of_configuration(config: Mapping[str, Any]) -> ModelShape:
    """The numbers, whatever a family calls them."""
    config = config.get("text_config") or config

    def number(name: str, otherwise: int | None = None) -> int:
        found = next((config[key] for key in NAMES[name] if config.get(key) is not None), otherwise)
        if not isinstance(found, int):
            raise ValueError(f"it has no `{NAMES[name][0]}`.")
        return found

    hidden, heads = number("hidden"), number("heads")
    return ModelShape(
        hidden,
        number("layers"),
        number("intermediate", 4 * hidden),
        heads,
        number("kv_heads", heads),
        number("head_size", hidden // heads),
        number("vocabulary"),
        bool(config.get("tie_word_embeddings", True)),
    )
