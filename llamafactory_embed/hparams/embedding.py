"""What makes a language model an embedder; shared by every stage that trains one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .option import option


@dataclass
class EmbeddingOptions:
    """Attention, pooling, prompts and lengths. A checkpoint keeps them: what is trained is what is served."""

    attention: Literal["bidirectional", "causal"] = option(
        "bidirectional", "Whether a token sees the whole text or only what stands before it."
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep", "What to do with the sliding window of models like Mistral: keep it, two-sided, or see the whole text."
    )
    pooling: Literal["mean", "weighted_mean", "last", "eos", "bos", "latent", "multi_layer_latent"] = option(
        "mean", "How a text's hidden states become one vector."
    )
    latents: int = option(512, "Number of learned latents (latent pooling).", minimum=1)
    latent_heads: int = option(8, "Attention heads of the latents (latent pooling).", minimum=1)
    latent_head_size: int | None = option(
        None, "Size of a head of the latents (latent pooling); empty: the hidden size divided by the heads.", minimum=1
    )
    skip_instruction: bool = option(False, "Leave the tokens of the instruction out of the pooling.")
    query_template: str = option(
        "e5",
        "How an instruction and a query are written: e5, llm2vec, llm2vec_e5_data, or a text with {text} and "
        "{instruction}.",
    )
    document_template: str = option(
        "{text}", "How a document is written; documents of symmetric tasks are written like queries."
    )
    query_max_length: int | None = option(
        None, "Most tokens of a query, special tokens included; empty: `cutoff_len`.", minimum=1
    )
    document_max_length: int | None = option(
        None, "Most tokens of a document, special tokens included; empty: `cutoff_len`.", minimum=1
    )
    normalize_embeddings: bool = option(True, "Give every served embedding unit length.")
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: what suits the "
        "device, 1024 on a CPU (its caches) and 16384 elsewhere.",
        minimum=1,
    )
