"""Dream (Ye et al. 2025, arXiv 2508.15487): Qwen2 with attention to both sides, adapted to masked diffusion.

Parameters have Qwen2's names, so Qwen2's modules serve, with every attention back-end, gradient checkpointing, LoRA
and Liger. The prediction for a token stands at the position before it, as in the autoregressive model it was made of.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, Qwen2Tokenizer
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

from .original_layout import DiffusionLanguageModel, OriginalCode, OriginalConfig


class DreamConfig(OriginalCode, OriginalConfig, Qwen2Config):
    """`model_type: Dream`; the defaults that differ from Qwen2's are those of Dream 7B."""

    model_type = "Dream"

    def __init__(
        self,
        *,
        mask_token_id: int | None = 151666,
        pad_token_id: int | None = 151643,
        use_cache: bool = False,
        is_causal: bool = False,
        **values: Any,
    ) -> None:
        self.mask_token_id = mask_token_id
        self.is_causal = is_causal  # what the mask functions of transformers ask for
        super().__init__(pad_token_id=pad_token_id, use_cache=use_cache, **values)


class DreamTokenizer(OriginalCode, Qwen2Tokenizer):
    """The original's tokenizer class is Qwen2's under another name."""


class DreamBaseModel(OriginalCode, Qwen2Model):
    """The decoder."""

    config: DreamConfig
    config_class = DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.is_causal = config.is_causal


class DreamModel(DiffusionLanguageModel, Qwen2ForCausalLM):
    """The decoder with its head, under the name that the original gives it."""

    config: DreamConfig
    config_class = DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        Qwen2PreTrainedModel.__init__(self, config)  # not that of the model, which would build a causal decoder
        self.model = DreamBaseModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
