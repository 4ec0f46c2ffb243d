"""What makes a language model an embedder; shared by every stage that trains one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .option import option


# How the numbers of an embedding are stored; the names are those of sentence-transformers.
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# For the conditions of other options: the poolings with learned latents, and those that read all tokens of a text.
LATENT_POOLINGS = ("latent", "multi_layer_latent")
POOLINGS_OF_ALL_TOKENS = ("mean", "weighted_mean", *LATENT_POOLINGS)


@dataclass
class EmbeddingOptions:
    """Attention, pooling, prompts and lengths. A checkpoint keeps them: what is trained is what is served."""

    attention: Literal["bidirectional", "causal"] = option(
        "bidirectional",
        "Whether a token attends to the whole text or only to the tokens before it.",
        group="Attention",
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep",
        "Sliding window of models like Mistral: keep it, on both sides, or ignore it and attend to the whole text.",
        group="Attention",
    )
    pooling: Literal["mean", "weighted_mean", "last", "eos", "bos", "mask", "latent", "multi_layer_latent"] = option(
        "mean", "How the hidden states of a text become one vector."
    )
    latents: int = option(
        512,
        "Number of learned latents (latent pooling).",
        minimum=1,
        group="Latent pooling",
        when={"pooling": LATENT_POOLINGS},
    )
    latent_heads: int = option(
        8,
        "Attention heads over the latents (latent pooling).",
        minimum=1,
        group="Latent pooling",
        when={"pooling": LATENT_POOLINGS},
    )
    latent_head_size: int | None = option(
        None,
        "Size of an attention head over the latents (latent pooling); empty: hidden size / heads.",
        minimum=1,
        group="Latent pooling",
        when={"pooling": LATENT_POOLINGS},
    )
    latents_init_std: float = option(
        0.02,
        "Standard deviation of the latents' initial values (latent pooling); Pooling-and-Attention: 1.",
        minimum=1e-6,
        group="Latent pooling",
        when={"pooling": LATENT_POOLINGS},
    )
    mask_tokens: int = option(
        1,
        "Mask tokens that are appended to a text; the mean of their states is the embedding (mask pooling).",
        minimum=1,
        group="Mask pooling",
        when={"pooling": ("mask",)},
    )
    mask_token: str | None = option(
        None,
        "Token of mask pooling: blank (the token `_`), eos, mask (the tokenizer's mask token), or any text that is "
        "one token; empty: that of the checkpoint or model family.",
        group="Mask pooling",
        when={"pooling": ("mask",)},
    )
    skip_instruction: bool = option(
        False,
        "Leave the instruction's tokens out of the pooling.",
        group="Texts and prompts",
        when={"pooling": POOLINGS_OF_ALL_TOKENS},
    )
    dense_sizes: list[int] | None = option(
        None,
        "Sizes of linear layers behind the pooling, the last one being the embedding's; empty: none.",
        group="Layers behind the pooling",
    )
    dense_bias: bool = option(True, "Whether these layers have a bias.", group="Layers behind the pooling")
    dense_activations: list[str] = option(
        ["identity"],
        "What follows these layers (identity, tanh, relu, gelu, silu, sigmoid): one for all of them, or one for each.",
        group="Layers behind the pooling",
    )
    query_template: str = option(
        "e5",
        "How an instruction and a query are written: e5, llm2vec, llm2vec_e5_data, verbatim, or a text with {text} "
        "and {instruction}.",
    )
    document_template: str = option(
        "{text}",
        "How a document is written; in symmetric tasks, documents are written like queries.",
        group="Texts and prompts",
    )
    query_max_length: int | None = option(
        None,
        "Most tokens of a query, special tokens included; empty: `cutoff_len`.",
        minimum=1,
        group="Texts and prompts",
    )
    document_max_length: int | None = option(
        None,
        "Most tokens of a document, special tokens included; empty: `cutoff_len`.",
        minimum=1,
        group="Texts and prompts",
    )
    normalize_embeddings: bool = option(True, "Scale served embeddings to unit length.", group="Similarity")
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: 4096 on a CPU "
        "(1024 to encode), 16384 elsewhere.",
        minimum=1,
        group="Memory and length of the run",
    )


def check_mask_pooling(options: EmbeddingOptions) -> None:
    """Refuse options that mask pooling does not read, and its own without it."""
    if options.pooling == "mask" and options.skip_instruction:
        raise ValueError(
            "`skip_instruction` leaves tokens of the text out of the pooling, and `pooling: mask` reads none of them: "
            "leave it out."
        )
    for name in ("mask_tokens", "mask_token"):
        if options.pooling != "mask" and getattr(options, name) != getattr(EmbeddingOptions, name):
            raise ValueError(f"`{name}` belongs to `pooling: mask`, not to {options.pooling}: leave it out.")
