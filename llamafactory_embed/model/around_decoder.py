"""What the modules that trainers wrap have in common: a language model in which they run the transformer only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .packed import find_decoder


class AroundDecoder(nn.Module):
    """`backbone` is a causal language model, a bare decoder or an encoder, in PEFT's wrapper if it has LoRA layers.

    The Trainer, DeepSpeed and FSDP ask it what they would ask a model of transformers.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self._decoder = [find_decoder(backbone)]  # in a list: its parameters are registered once, under `backbone`

    @property
    def decoder(self) -> Any:
        """The transformer below the language-model head."""
        return self._decoder[0]

    @property
    def language_model(self) -> PreTrainedModel:
        """The backbone without PEFT's wrapper."""
        backbone: Any = self.backbone
        return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        return self.decoder.get_input_embeddings().weight.device

    def get_input_embeddings(self) -> nn.Module:
        """Token ids → vectors."""
        return self.decoder.get_input_embeddings()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass instead of keeping their activations."""
        return self.language_model.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute layers again in the backward pass. What is on already (the host turns it on while it loads a model)
        stays as it is unless something else is asked for."""
        if self.is_gradient_checkpointing and gradient_checkpointing_kwargs is None:
            return
        # Reentrant checkpointing gives no gradients where a layer's input needs none, as after frozen embeddings.
        kwargs = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        self.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations of all layers."""
        self.language_model.gradient_checkpointing_disable()
