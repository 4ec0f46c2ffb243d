"""How a published checkpoint is to be read where it does not say so itself; shared by every command that takes one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .option import option


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Settings of an embedder by their names in its configuration; what is left empty is as the checkpoint says."""

    pooling: Literal["mean", "weighted_mean", "last", "eos", "bos", "mask", "latent", "multi_layer_latent"] | None = (
        option(None, "How hidden states become one vector; empty: as the checkpoint says.")
    )
    attention: Literal["bidirectional", "causal"] | None = option(
        None, "What a token attends to, the whole text or the tokens before it; empty: as the checkpoint says."
    )
    sliding_window: Literal["keep", "ignore"] | None = option(
        None, "Keep or ignore the sliding window of models like Mistral; empty: as the checkpoint says."
    )
    query_template: str | None = option(
        None, "How an instruction and a query are written, as in a recipe; empty: as the checkpoint was trained."
    )
    document_template: str | None = option(
        None, "How a document is written, as in a recipe; empty: as the checkpoint was trained."
    )
    query_max_length: int | None = option(
        None, "Most tokens of a query, special tokens included; empty: as the checkpoint was trained.", minimum=1
    )
    document_max_length: int | None = option(
        None, "Most tokens of a document, special tokens included; empty: as the checkpoint was trained.", minimum=1
    )
    skip_instruction: bool | None = option(
        None, "Leave the instruction's tokens out of the pooling; empty: as the checkpoint was trained."
    )
    latent_heads: int | None = option(
        None,
        "Attention heads over the latents of a Pooling-and-Attention checkpoint; empty: the authors' 32.",
        minimum=1,
    )
    base_model: str | None = option(
        None, "Model below the adapters; empty: the one that the adapter names.", metavar="MODEL"
    )
    adapters: list[str] | None = option(
        None, "Adapters on top of the checkpoint, merged in this order.", metavar="ADAPTER"
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What was set, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(SourceOptions)}
        return {name: value for name, value in values.items() if value is not None}


SOURCE_SETTINGS = tuple(field.name for field in dataclasses.fields(SourceOptions))
