"""Trainable pooling: learned latents read a text's hidden states by cross attention.

Tang and Yang 2024, "Pooling And Attention: What Are Effective Designs For LLM-Based Embedding Models?". Departures:
padding is never attended (their design 4 does), layer embeddings exist for any depth (theirs end at 32 layers), sizes
are options, and embeddings are not normalized, as with every other pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import Lengths, count_tokens, fill_empty_texts, last_states, lengths_tensor, mean_states


# What the latents read. In a causal model only the last token has seen the whole text, so it alone is read (designs 2
# and 3); in a bidirectional one every token has, so all that count are (designs 4 and 5).
LatentKeys = Literal["last_token", "all_tokens"]

# Texts share one attention call while the longest has at most this many times the keys of the shortest: at most a
# fifth of the call is padding, and the number of calls grows only with the logarithm of the lengths.
LARGEST_LENGTH_RATIO = 1.25


class LatentPooler(nn.Module):
    """Latents attend to the last layer's states; their mean, after a feed-forward block, is the embedding.

    Both blocks are residual and normalize what goes in: `A = attention(norm(latents), norm(keys)) + latents`,
    `B = feedforward(norm(A)) + A`, where the feed-forward is a GEGLU (Shazeer 2020).
    """

    uses_all_layers = False

    def __init__(
        self,
        hidden_size: int,
        *,
        latents: int,
        heads: int,
        head_size: int,
        keys: LatentKeys,
        latents_init_std: float,
        feedforward_factor: int = 4,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.keys = keys
        inner_size = heads * head_size
        feedforward_size = feedforward_factor * hidden_size
        # Small by default, unlike the original's 1: the mean of the latents is the same for every text, and at the
        # scale of the states it would drown what the texts differ in. What attends is normalized, so this does not
        # weaken it.
        self.latents = nn.Parameter(torch.randn(latents, hidden_size) * latents_init_std)
        self.latent_norm = nn.LayerNorm(hidden_size)
        self.key_norm = nn.LayerNorm(hidden_size)
        self.to_query = nn.Linear(hidden_size, inner_size, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.to_output = nn.Linear(inner_size, hidden_size, bias=False)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.feedforward_in = nn.Linear(hidden_size, 2 * feedforward_size)
        self.feedforward_out = nn.Linear(feedforward_size, hidden_size)

    def forward(self, states: Sequence[Tensor], lengths: Lengths, pooled_tokens: Tensor | None = None) -> Tensor:
        """The last of `states`, [T, d], → embeddings [B, d]."""
        hidden = states[-1]
        if self.keys == "last_token":
            return self.read(last_states(hidden, lengths), [1] * len(lengths))
        if pooled_tokens is None:
            return self.read(hidden, [int(length) for length in lengths])
        sizes = lengths_tensor(lengths, hidden.device)
        pooled_tokens = fill_empty_texts(pooled_tokens.to(hidden.device), sizes)
        counts, _ = count_tokens(pooled_tokens, sizes)
        return self.read(hidden[pooled_tokens], counts.tolist())

    def read(self, keys: Tensor, key_counts: Sequence[int]) -> Tensor:
        """Keys [K, d] of B texts, end to end, → embeddings [B, d]."""
        keys = keys.to(self.latents.dtype)
        query = self.to_query(self.latent_norm(self.latents))  # [N, i], i = heads * head size
        key_value = self.to_key_value(self.key_norm(keys))  # [K, 2i]
        attended = cross_attend(query, key_value, key_counts, self.heads)  # [B, N, i]
        latents = self.to_output(attended) + self.latents  # [B, N, d]
        values, gates = self.feedforward_in(self.feedforward_norm(latents)).chunk(2, dim=-1)
        latents = self.feedforward_out(values * F.gelu(gates)) + latents
        return latents.mean(dim=1, dtype=torch.promote_types(latents.dtype, torch.float32))


class MultiLayerLatentPooler(LatentPooler):
    """Latents attend to one vector a layer: the last token's state, or the mean of the tokens that count.

    A learned embedding of the layer is added to each vector. The embedding layer's states are not read.
    """

    uses_all_layers = True

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        *,
        latents: int,
        heads: int,
        head_size: int,
        keys: LatentKeys,
        latents_init_std: float,
        feedforward_factor: int = 4,
    ) -> None:
        super().__init__(
            hidden_size,
            latents=latents,
            heads=heads,
            head_size=head_size,
            keys=keys,
            latents_init_std=latents_init_std,
            feedforward_factor=feedforward_factor,
        )
        self.layer_embeddings = nn.Parameter(torch.randn(num_layers, hidden_size) * 0.02)

    def forward(self, states: Sequence[Tensor], lengths: Lengths, pooled_tokens: Tensor | None = None) -> Tensor:
        """States of the embedding and of each layer, [T, d], → embeddings [B, d]."""
        num_layers = len(self.layer_embeddings)
        if len(states) != num_layers + 1:
            raise ValueError(
                f"`pooling: multi_layer_latent` was built for a model of {num_layers} layers, this one has "
                f"{len(states) - 1}: load the pooler with the model it was trained on."
            )
        if self.keys == "last_token":
            vectors = [last_states(hidden, lengths) for hidden in states[1:]]
        else:
            vectors = [mean_states(hidden, lengths, pooled_tokens) for hidden in states[1:]]
        keys = torch.stack(vectors, dim=1) + self.layer_embeddings  # [B, L, d]
        return self.read(keys.flatten(0, 1), [num_layers] * len(keys))


def cross_attend(query: Tensor, key_value: Tensor, key_counts: Sequence[int], heads: int) -> Tensor:
    """N shared queries [N, i] attend to each text's own keys and values [K, 2i] → [B, N, i].

    Texts of similar length share a call; the projections before and after it see no padding.
    """
    starts = [0]
    for count in key_counts:
        starts.append(starts[-1] + count)
    queries = query.unflatten(-1, (heads, -1)).transpose(0, 1)  # [h, N, i / h]

    outputs, order = [], []
    for texts in group_by_length(key_counts):
        order += texts
        counts = torch.tensor([key_counts[text] for text in texts], device=key_value.device)  # [b]
        offsets = torch.arange(key_counts[texts[-1]], device=key_value.device)  # [longest]
        first = torch.tensor([starts[text] for text in texts], device=key_value.device)
        inside = offsets < counts.unsqueeze(1)  # [b, longest]
        rows = first.unsqueeze(1) + torch.minimum(offsets, counts.unsqueeze(1) - 1)
        keys, values = (
            key_value[rows].unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each [b, h, longest, i / h]
        same_length = key_counts[texts[0]] == key_counts[texts[-1]]
        attended = F.scaled_dot_product_attention(
            queries.expand(len(texts), *queries.shape),
            keys,
            values,
            attn_mask=None if same_length else inside[:, None, None, :],
        )  # [b, h, N, i / h]
        outputs.append(attended.transpose(1, 2).flatten(2))
    places = torch.tensor(order, device=key_value.device).argsort()  # where each text ended up
    return torch.cat(outputs)[places]


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of texts in groups of similar length, shortest first within each."""
    groups: list[list[int]] = []
    for text in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if groups and lengths[text] <= LARGEST_LENGTH_RATIO * lengths[groups[-1][0]]:
            groups[-1].append(text)
        else:
            groups.append([text])
    return groups
