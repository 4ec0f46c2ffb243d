"""Hidden states of packed texts → one embedding a text, without padding and without a loop over texts.

A pooler is a module with `forward(states, lengths, pooled_tokens)`: `states` is what `forward_packed` returns, with
the states of all layers if the pooler's `uses_all_layers` asks for them; `lengths` says how many tokens each text has;
`pooled_tokens` [T] which tokens count, None for all. Embeddings are not normalized.

A text none of whose tokens counts (truncation left only its instruction) is pooled over all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from ..hparams.embedding import EmbeddingOptions
from .latent_pooling import LatentKeys, LatentPooler, MultiLayerLatentPooler
from .packed import Lengths, first_states, last_states, mean_states


TokenPooling = Literal["mean", "weighted_mean", "last", "eos", "bos", "mask"]
LatentPooling = Literal["latent", "multi_layer_latent"]
Pooling = Literal["mean", "weighted_mean", "last", "eos", "bos", "mask", "latent", "multi_layer_latent"]


class TokenPooler(nn.Module):
    """Poolings without parameters.

    `mean`; `weighted_mean`, weights 1, 2, …, m over the tokens that count (Muennighoff 2022, SGPT); `last`; `eos`, the
    last token where tokenization has appended EOS; `bos`, the first token. These three pick their token whether or not
    it counts. `mask` is the mean where tokenization has appended mask tokens, and lets no other token count.
    """

    uses_all_layers = False

    def __init__(self, pooling: TokenPooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, states: Sequence[Tensor], lengths: Lengths, pooled_tokens: Tensor | None = None) -> Tensor:
        """The last of `states`, [T, d], → embeddings [B, d]."""
        hidden = states[-1]
        if self.pooling in ("last", "eos"):
            return last_states(hidden, lengths)
        if self.pooling == "bos":
            return first_states(hidden, lengths)
        return mean_states(hidden, lengths, pooled_tokens, growing=self.pooling == "weighted_mean")


Pooler = TokenPooler | LatentPooler | MultiLayerLatentPooler


def needs_eos(pooling: Pooling, causal: bool) -> bool:
    """Whether tokenization has to append EOS: a pooling that reads a text from its last token wants the same one for
    every text, one that the text itself cannot contain."""
    return pooling in ("last", "eos") or (causal and pooling in get_args(LatentPooling))


def build_pooler(
    pooling: Pooling,
    *,
    hidden_size: int,
    num_layers: int,
    causal: bool,
    latents: int = 512,
    heads: int = 8,
    head_size: int | None = None,
    latents_init_std: float = EmbeddingOptions.latents_init_std,
) -> Pooler:
    """The pooler of a recipe. `causal` is the model's attention, which decides what latents read (`LatentKeys`).

    The sizes are those of the latent poolings: by default NV-Embed's (Lee et al. 2024), whose heads share the hidden
    size; Tang and Yang 2024 use 768 latents and 32 heads of 2048. `latents_init_std` matters to a pooler that trains.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"`pooling` must be one of {', '.join(get_args(Pooling))}, not {pooling!r}.")
    if pooling != "latent" and pooling != "multi_layer_latent":
        return TokenPooler(pooling)
    if head_size is None and hidden_size % heads:
        raise ValueError(
            f"`latent_heads` is {heads}, which does not divide the hidden size {hidden_size}: choose another number, "
            "or set `latent_head_size`."
        )
    head_size = head_size or hidden_size // heads
    keys: LatentKeys = "last_token" if causal else "all_tokens"
    if pooling == "latent":
        return LatentPooler(
            hidden_size,
            latents=latents,
            heads=heads,
            head_size=head_size,
            keys=keys,
            latents_init_std=latents_init_std,
        )
    return MultiLayerLatentPooler(
        hidden_size,
        num_layers,
        latents=latents,
        heads=heads,
        head_size=head_size,
        keys=keys,
        latents_init_std=latents_init_std,
    )
