"""Model families: Dream and LLaDA as native classes, and what is known of these and of the autoregressive ones.

Importing this package makes the Auto classes of transformers know both. LLaMA-Factory does it when its model loader is
imported (`host.families`), `Encoder` when it is.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from .dream import DreamBaseModel, DreamConfig, DreamModel, DreamTokenizer
from .llada import LLaDAConfig, LLaDAModel, LLaDAModelLM
from .registry import FAMILIES, Family, family_of, find_family


__all__ = [
    "FAMILIES",
    "DreamBaseModel",
    "DreamConfig",
    "DreamModel",
    "DreamTokenizer",
    "Family",
    "LLaDAConfig",
    "LLaDAModel",
    "LLaDAModelLM",
    "family_of",
    "find_family",
]


def register_classes() -> None:
    """Let the Auto classes find ours by `model_type`. From transformers 5.5 on a class from outside of it goes before
    the code that a checkpoint's `auto_map` names, even where `trust_remote_code` is set; before, where it is not."""
    for config, decoder, with_head in (
        (DreamConfig, DreamBaseModel, DreamModel),
        (LLaDAConfig, LLaDAModel, LLaDAModelLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, decoder, exist_ok=True)
        AutoModelForCausalLM.register(config, with_head, exist_ok=True)
    # Under its name only: a tokenizer registered for a configuration would stand behind the checkpoint's own code.
    REGISTERED_TOKENIZER_CLASSES[DreamTokenizer.__name__] = DreamTokenizer


register_classes()
