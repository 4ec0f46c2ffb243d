"""A language model and a pooler: tokenized texts in, one vector a text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_patch import Backend, patch_attention

from ..hparams.embedding import EmbeddingOptions
from .around_decoder import AroundDecoder
from .embedding_config import EmbeddingConfig
from .packed import PackedBatch, forward_packed
from .pooling import Pooler, build_pooler


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
        self._freeze_head()

    def forward(self, batches: Sequence[PackedBatch]) -> Tensor:
        """Embeddings [N, d] of the N texts of all batches, in the order in which they were given to `pack_texts`.

        All forwards of a step happen in one call, which is what DDP, FSDP and ZeRO expect of the module they wrap.
        """
        pooled = []
        for batch in batches:
            batch = batch.to(self.device)
            states = forward_packed(self.decoder, batch, all_layers=self.pooler.uses_all_layers)
            pooled.append(self.pooler(states, batch.lengths, batch.pooled_tokens))
        order = torch.tensor([index for batch in batches for index in batch.text_indices], device=pooled[0].device)
        return torch.cat(pooled)[order.argsort()]

    def _freeze_head(self) -> None:
        used = {id(parameter) for parameter in self.decoder.parameters()}
        head: Any = self.backbone.get_output_embeddings()
        if head is not None:  # LLaDA keeps it among the decoder's modules; in others it may be the embedding as well
            embedding = self.decoder.get_input_embeddings()
            used -= {id(each) for each in head.parameters()} - {id(each) for each in embedding.parameters()}
        for parameter in self.backbone.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)
