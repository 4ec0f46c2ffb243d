"""A language model and a pooler: tokenized texts in, vectors out, one a text or one a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_patch import Backend, patch_attention

from ..hparams.embedding import EmbeddingOptions
from .around_decoder import AroundDecoder
from .dense import DenseHead
from .embedding_config import EmbeddingConfig
from .packed import Lengths, PackedBatch, forward_packed
from .pooling import Pooler, build_pooler
from .vector_sets import count_vectors, counting_states


class EmbeddingModel(AroundDecoder):
    """The module that trainers wrap and that `Encoder` serves.

    `backbone` is a causal language model or a bare decoder, with PEFT's wrapper around it if it has LoRA layers. Its
    language-model head is never run; it is frozen so that neither optimizer nor DDP waits for its gradients.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: EmbeddingConfig,
        backend: Backend | None = None,
        latents_init_std: float = EmbeddingOptions.latents_init_std,
    ) -> None:
        """`latents_init_std` is where the latents of a pooler that trains start; one that is loaded needs none."""
        super().__init__(backbone)
        self.embedding_config = config
        self.attention = patch_attention(
            backbone, config.attention, sliding_window=config.sliding_window, backend=backend
        )
        self.pooler: Pooler = build_pooler(
            config.pooling,
            hidden_size=self.config.hidden_size,
            num_layers=self.config.num_hidden_layers,
            causal=config.causal,
            latents=config.latents,
            heads=config.latent_heads,
            head_size=config.latent_head_size,
            latents_init_std=latents_init_std,
        )
        self.dense = DenseHead(self.config.hidden_size, config.dense)
        self._freeze_head()

    @property
    def dimension(self) -> int:
        """The size of an embedding."""
        return self.embedding_config.embedding_size(self.config.hidden_size)

    def forward(self, batches: Sequence[PackedBatch]) -> Tensor:
        """Embeddings [N, d] of the N texts of all batches, in the order in which they were given to `pack_texts`; of a
        model of several vectors [V, d], text after text, `vectors_of_texts` of the batches each.

        All forwards of a step happen in one call, which is what DDP, FSDP and ZeRO expect of the module they wrap.
        """
        pooled = []
        for batch in batches:
            batch = batch.to(self.device)
            states = forward_packed(self.decoder, batch, all_layers=self.pooler.uses_all_layers)
            pooled.append(self.pool(states, batch.lengths, batch.pooled_tokens))
        owners = torch.tensor([index for batch in batches for index in batch.text_indices], device=pooled[0].device)
        if self.embedding_config.multi_vector:
            counts = torch.tensor([count for batch in batches for count in count_vectors(batch)], device=owners.device)
            owners = owners.repeat_interleave(counts)
        return torch.cat(pooled)[owners.argsort(stable=True)]

    def pool(self, states: Sequence[Tensor], lengths: Lengths, pooled_tokens: Tensor | None = None) -> Tensor:
        """Hidden states of texts end to end, as `forward_packed` returns them, → embeddings [B, d], or [V, d]."""
        if self.embedding_config.multi_vector:
            return self.dense(counting_states(states[-1], lengths, pooled_tokens))
        return self.dense(self.pooler(states, lengths, pooled_tokens))

    def pooling_weights(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights above the language model, by their names in a checkpoint: those of the pooler by its own names,
        those of the layers behind it under `dense.`. `state_dict` is that of this module if an engine had to collect
        it."""
        if state_dict is None:
            dense = {f"dense.{name}": each for name, each in self.dense.state_dict().items()}
            return self.pooler.state_dict() | dense
        own = {name: each for name, each in state_dict.items() if name.startswith(("pooler.", "dense."))}
        return {name.removeprefix("pooler."): each for name, each in own.items()}

    def load_pooling_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights by these names into pooler and layers; they must be those of this model."""
        dense = {name.removeprefix("dense."): each for name, each in weights.items() if name.startswith("dense.")}
        self.pooler.load_state_dict({name: each for name, each in weights.items() if not name.startswith("dense.")})
        self.dense.load_state_dict(dense)

    def _freeze_head(self) -> None:
        used = {id(parameter) for parameter in self.decoder.parameters()}
        head: Any = self.backbone.get_output_embeddings()
        if head is not None:  # LLaDA keeps it among the decoder's modules; in others it may be the embedding as well
            embedding = self.decoder.get_input_embeddings()
            used -= {id(each) for each in head.parameters()} - {id(each) for each in embedding.parameters()}
        for parameter in self.backbone.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)
