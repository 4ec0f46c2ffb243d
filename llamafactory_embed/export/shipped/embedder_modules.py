"""How this model prepares and pools texts, where the modules of sentence-transformers cannot do it.

Loaded by `SentenceTransformer(folder, trust_remote_code=True)`; needs torch and sentence-transformers only.
`TextTransformer` says where in each text pooling begins; `TextPooling` makes one vector of what counts.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sentence_transformers.models import Module, Transformer
from torch import Tensor, nn


WEIGHTS = "pooler.safetensors"


class TextTransformer(Transformer):
    """The language model. `prompt_length` passes on to the pooling how many tokens stand before each text: special
    tokens and those of the prompt that hold nothing of the text."""

    def _can_flatten_inputs(self) -> bool:
        return False  # the pooling below reads padded batches

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenize as before, then count."""
        features: dict[str, Any] = super().preprocess(inputs, prompt=prompt, **kwargs)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        before = [self._count_before(text, prompt or "", n) for text, n in zip(inputs, lengths, strict=True)]
        features["prompt_length"] = torch.tensor(before)
        return features

    def _count_before(self, text: str, prompt: str, length: int) -> int:
        """Of a text that truncation has cut to `length` tokens; all of them if nothing of the text is left."""
        framed = self.tokenizer(prompt + text, return_offsets_mapping=True, return_special_tokens_mask=True)
        added = framed["special_tokens_mask"]
        if all(added):
            return length
        leading, trailing = added.index(0), added[::-1].index(0)
        ends = [end for _, end in framed["offset_mapping"][leading : len(added) - trailing]]
        of_prompt = sum(end <= len(prompt) for end in ends) if prompt else 0
        return leading + of_prompt if of_prompt < length - leading - trailing else length


class TextPooling(Module):
    """Token states [B, L, d] → one vector a text [B, d].

    `mean` and `weighted_mean` (weights 1, 2, …) over the tokens that count; `latent` and `multi_layer_latent`: learned
    latents read the states by cross attention. If no token counts, because truncation left only the prompt, all do.
    """

    config_keys = (
        "embedding_dimension",
        "pooling",
        "skip_instruction",
        "keys",
        "latents",
        "heads",
        "head_size",
        "feedforward_size",
        "num_layers",
    )

    def __init__(
        self,
        embedding_dimension: int,
        pooling: str,
        skip_instruction: bool,
        keys: str | None = None,
        latents: int = 0,
        heads: int = 1,
        head_size: int = 0,
        feedforward_size: int = 0,
        num_layers: int = 0,
    ) -> None:
        super().__init__()
        self.embedding_dimension = embedding_dimension
        self.pooling = pooling
        self.skip_instruction = skip_instruction
        self.keys = keys
        self.num_latents = latents
        self.heads = heads
        self.head_size = head_size
        self.feedforward_size = feedforward_size
        self.num_layers = num_layers
        if keys is None:
            return
        size, inner = embedding_dimension, heads * head_size
        self.latents = nn.Parameter(torch.empty(latents, size))
        self.latent_norm = nn.LayerNorm(size)
        self.key_norm = nn.LayerNorm(size)
        self.to_query = nn.Linear(size, inner, bias=False)
        self.to_key_value = nn.Linear(size, 2 * inner, bias=False)
        self.to_output = nn.Linear(inner, size, bias=False)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward_in = nn.Linear(size, 2 * feedforward_size)
        self.feedforward_out = nn.Linear(feedforward_size, size)
        if num_layers:
            self.layer_embeddings = nn.Parameter(torch.empty(num_layers, size))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`."""
        mask = features["attention_mask"].bool()  # [B, L]
        counts = self._counting(mask, features["prompt_length"]) if self.skip_instruction else mask
        states = features["token_embeddings"]
        if self.keys is None:
            features["sentence_embedding"] = mean(states, counts, growing=self.pooling == "weighted_mean")
        elif self.num_layers:
            read = last if self.keys == "last_token" else mean
            layers = features["all_layer_embeddings"][1:]  # without the embedding layer's
            vectors = torch.stack([read(layer, mask if read is last else counts) for layer in layers], dim=1)
            vectors = vectors.to(self.latents.dtype) + self.layer_embeddings  # [B, layers, d]
            features["sentence_embedding"] = self._read(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool))
        elif self.keys == "last_token":
            vectors = last(states, mask)[:, None]
            features["sentence_embedding"] = self._read(vectors, torch.ones_like(mask[:, :1]))
        else:
            features["sentence_embedding"] = self._read(states, counts)
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dimension

    @staticmethod
    def _counting(mask: Tensor, before: Tensor) -> Tensor:
        """Which tokens count: those of the text and what stands after it."""
        position = mask.cumsum(dim=1) - 1  # of a token in its text, also after padding on the left
        counts = mask & (position >= before.to(mask.device)[:, None])
        return counts | (mask & ~counts.any(dim=1, keepdim=True))

    def _read(self, keys: Tensor, mask: Tensor) -> Tensor:
        """Latents attend to keys [B, K, d] where the mask [B, K] allows."""
        keys = keys.to(self.latents.dtype)
        query = self.to_query(self.latent_norm(self.latents)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        key, value = self.to_key_value(self.key_norm(keys)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            query.expand(len(keys), *query.shape), key, value, attn_mask=mask[:, None, None, :]
        )  # [B, heads, latents, head size]
        latents = self.to_output(attended.transpose(1, 2).flatten(2)) + self.latents
        values, gates = self.feedforward_in(self.feedforward_norm(latents)).chunk(2, dim=-1)
        latents = self.feedforward_out(values * F.gelu(gates)) + latents
        return latents.float().mean(dim=1)

    def get_config_dict(self) -> dict[str, Any]:
        return {key: getattr(self, "num_latents" if key == "latents" else key) for key in self.config_keys}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write configuration and weights into this module's own folder."""
        self.save_config(output_path)
        if self.keys is not None:
            save_file(self.state_dict(), os.path.join(output_path, WEIGHTS))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> TextPooling:
        """The weights lie in this module's folder, or beside the language model's."""
        hub = {name: kwargs.get(name) for name in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = kwargs.get("local_files_only", False)
        module = cls(**cls.load_config(model_name_or_path, subfolder=subfolder, **hub))
        if module.keys is not None:
            path = cls.load_file_path(model_name_or_path, WEIGHTS, subfolder=subfolder, **hub)
            path = path or cls.load_file_path(model_name_or_path, WEIGHTS, **hub)
            if path is None:
                raise ValueError(f"{model_name_or_path} holds no {WEIGHTS}, the weights of the pooling.")
            weights = load_file(path)
            module.load_state_dict({name: weights[name] for name in weights if not name.startswith("dense.")})
        return module


def mean(states: Tensor, mask: Tensor, growing: bool = False) -> Tensor:
    """The average of the tokens that count; `growing` weighs them 1, 2, 3, …"""
    weights = (mask.cumsum(dim=1) * mask if growing else mask).to(torch.promote_types(states.dtype, torch.float32))
    return torch.einsum("bl,bld->bd", weights / weights.sum(dim=1, keepdim=True), states.to(weights.dtype))


def last(states: Tensor, mask: Tensor) -> Tensor:
    """The state of each text's last token."""
    position = torch.arange(mask.shape[1], device=mask.device)
    index = (position * mask).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), index]
