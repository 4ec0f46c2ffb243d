"""What makes a language model an embedder; shared by every stage that trains one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .option import option


# How the numbers of an embedding are stored; the names are those of sentence-transformers.
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass
class EmbeddingOptions:
    """Attention, pooling, prompts and lengths. A checkpoint keeps them: what is trained is what is served."""

    attention: Literal["bidirectional", "causal"] = option(
        "bidirectional", "Whether a token attends to the whole text or only to the tokens before it."
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep",
        "Sliding window of models like Mistral: keep it, on both sides, or ignore it and attend to the whole text.",
    )
    pooling: Literal["mean", "weighted_mean", "last", "eos", "bos", "latent", "multi_layer_latent"] = option(
        "mean", "How the hidden states of a text become one vector."
    )
    latents: int = option(512, "Number of learned latents (latent pooling).", minimum=1)
    latent_heads: int = option(8, "Attention heads over the latents (latent pooling).", minimum=1)
    latent_head_size: int | None = option(
        None, "Size of an attention head over the latents (latent pooling); empty: hidden size / heads.", minimum=1
    )
    latents_init_std: float = option(
        0.02,
        "Standard deviation of the latents' initial values (latent pooling); Pooling-and-Attention: 1.",
        minimum=1e-6,
    )
    dense_sizes: list[int] | None = option(
        None, "Sizes of linear layers behind the pooling, the last one being the embedding's; empty: none."
    )
    dense_bias: bool = option(True, "Whether these layers have a bias.")
    dense_activations: list[str] = option(
        ["identity"],
        "What follows these layers (identity, tanh, relu, gelu, silu, sigmoid): one for all of them, or one for each.",
    )
    skip_instruction: bool = option(False, "Leave the instruction's tokens out of the pooling.")
    query_template: str = option(
        "e5",
        "How an instruction and a query are written: e5, llm2vec, llm2vec_e5_data, verbatim, or a text with {text} "
        "and {instruction}.",
    )
    document_template: str = option(
        "{text}", "How a document is written; in symmetric tasks, documents are written like queries."
    )
    query_max_length: int | None = option(
        None, "Most tokens of a query, special tokens included; empty: `cutoff_len`.", minimum=1
    )
    document_max_length: int | None = option(
        None, "Most tokens of a document, special tokens included; empty: `cutoff_len`.", minimum=1
    )
    normalize_embeddings: bool = option(True, "Scale served embeddings to unit length.")
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: 1024 on a CPU (for "
        "its caches), 16384 elsewhere.",
        minimum=1,
    )
