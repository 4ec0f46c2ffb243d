"""What the modules that trainers wrap have in common: a language model in which they run the transformer only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .packed import find_decoder


class AroundDecoder(nn.Module):
    """`backbone` is a causal language model, a bare decoder or an encoder, in PEFT's wrapper if it has LoRA layers."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self._decoder = [find_decoder(backbone)]  # in a list: its parameters are registered once, under `backbone`

    @property
    def decoder(self) -> Any:
        """The transformer below the language-model head."""
        return self._decoder[0]

    @property
    def config(self) -> Any:
        """The backbone's configuration, where trainers and DeepSpeed look for it."""
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        return self.decoder.get_input_embeddings().weight.device
