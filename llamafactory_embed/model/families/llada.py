"""LLaDA (Nie et al. 2025, arXiv 2502.09992): a masked diffusion model trained from scratch, a Llama under the names of
OLMo, from whose code the original grew.

The modules keep these names (`model.transformer.blocks.0.q_proj`, …), so checkpoints and LoRA adapters load as they
are. What is around a block, masks and cache included, is Llama's. A token is predicted at its own position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, eager_attention_forward

from .original_layout import DiffusionLanguageModel, OriginalCode, OriginalConfig


# What config.json says of LLaDA 8B, and what holds for a key that it leaves out.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 126464,
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": None,  # null: as many as `n_heads`
    "mlp_hidden_size": None,  # null: `mlp_ratio` times `d_model`
    "mlp_ratio": 4,
    "max_sequence_length": 4096,
    "rms_norm_eps": 1e-5,
    "init_std": 0.02,
    "attention_dropout": 0.0,
    "rope_parameters": None,
    "rope_full_precision": True,
    "mask_token_id": 126336,
    "pad_token_id": 126081,
    "bos_token_id": None,
    "eos_token_id": 126081,
    "use_cache": False,
    "is_causal": False,  # not a key of the original's: what transformers' mask functions ask for
}

# Keys of which one value is served, that of all published checkpoints.
SERVED: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": None,
    "residual_dropout": 0.0,
    "rope": True,
    "scale_logits": False,
    "weight_tying": False,
}


class LLaDAConfig(OriginalCode, OriginalConfig, PreTrainedConfig):
    """`model_type: llada` with the original's keys; transformers' names for them work as well."""

    model_type = "llada"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "initializer_range": "init_std",
        "tie_word_embeddings": "weight_tying",
    }

    if TYPE_CHECKING:  # transformers makes fields of what is annotated here, in its newer versions only
        vocab_size: int
        d_model: int
        n_layers: int
        n_heads: int
        n_kv_heads: int
        mlp_hidden_size: int
        mlp_ratio: int
        rms_norm_eps: float
        attention_dropout: float
        rope_full_precision: bool
        is_causal: bool

    def __init__(self, **values: Any) -> None:
        rows = values.pop("embedding_size", None)  # of the embedding matrix, which may be padded
        values = {self.attribute_map.get(name, name): value for name, value in values.items()}
        own = DEFAULTS | SERVED
        for name, default in own.items():
            setattr(self, name, values.get(name, default))
        self.vocab_size = rows or self.vocab_size
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.mlp_hidden_size = self.mlp_hidden_size or self.mlp_ratio * self.d_model
        for name, value in SERVED.items():
            if getattr(self, name) not in (None, value or False):  # null leaves the choice to another key
                raise ValueError(
                    f"`{name}: {getattr(self, name)}` in the config.json of a LLaDA model is not supported: all "
                    f"published ones have `{value}`."
                )
        super().__init__(**{name: value for name, value in values.items() if name not in own})

    def to_dict(self) -> dict[str, Any]:
        written = super().to_dict()
        return written | {"embedding_size": written["vocab_size"]}


class LLaDARotaryEmbedding(modeling_llama.LlamaRotaryEmbedding):
    """Llama's, except that cosines and sines stay float32 where the configuration says so."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.rope_full_precision:
            x = x.new_empty(0, dtype=torch.float32)  # only its device and its dtype are looked at
        return super().forward(x, position_ids)


class LLaDABlock(GradientCheckpointingLayer):
    """One layer. Attention has no module of its own in the original, so the block is what asks for the back-end."""

    def __init__(self, config: LLaDAConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        self.head_dim = config.d_model // config.n_heads
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout

        # Projections before norms: flash kernels take their precision from the first parameter, and LLaMA-Factory can
        # keep the norms in float32.
        width, inner = config.d_model, config.mlp_hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, config.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.n_kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)
        # asked for by their module, where Liger may have put its own
        self.attn_norm = modeling_llama.LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.ff_norm = modeling_llama.LlamaRMSNorm(width, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,  # [B, L, d]
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,  # what transformers calls `past_key_values` from 5.24 on
        **kwargs: Any,
    ) -> Tensor:
        cache = past_key_values if cache is None else cache
        normed = self.attn_norm(hidden_states)
        shape = (*normed.shape[:-1], -1, self.head_dim)
        # each [B, heads, L, head size]
        query, key, value = (
            project(normed).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = position_embeddings
        query, key = modeling_llama.apply_rotary_pos_emb(query.to(cos.dtype), key.to(cos.dtype), cos, sin)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, _ = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # [B, L, heads, head size]
        hidden_states = hidden_states + self.attn_out(attended.reshape(*normed.shape[:-1], -1).contiguous())

        normed = self.ff_norm(hidden_states)
        return hidden_states + self.ff_out(nn.functional.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDAPreTrainedModel(LlamaPreTrainedModel):
    """What transformers asks of an architecture."""

    config: LLaDAConfig
    config_class = LLaDAConfig
    _no_split_modules: ClassVar[list[str]] = ["LLaDABlock"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": LLaDABlock}


class LLaDAModel(OriginalCode, LLaDAPreTrainedModel, LlamaModel):
    """The decoder: Llama's forward, which finds its parts under Llama's names."""

    # the head, which lies among the decoder's modules in a checkpoint
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"transformer\.ff_out\.weight"]

    def __init__(self, config: LLaDAConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not that of the model, which would build Llama's layers
        self.vocab_size = config.vocab_size
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config, index) for index in range(config.n_layers)),
                "ln_f": modeling_llama.LlamaRMSNorm(config.d_model, eps=config.rms_norm_eps),
            }
        )
        self.rotary_emb = LLaDARotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def embed_tokens(self) -> nn.Module:
        return self.transformer["wte"]

    @property
    def layers(self) -> nn.Module:
        return self.transformer["blocks"]

    @property
    def norm(self) -> nn.Module:
        return self.transformer["ln_f"]

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer["wte"] = value


class LLaDAModelLM(DiffusionLanguageModel, LLaDAPreTrainedModel, LlamaForCausalLM):
    """The decoder with its head, which the original keeps beside the embedding."""

    _tied_weights_keys = None

    def __init__(self, config: LLaDAConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LLaDAModel(config)
        self.vocab_size = config.vocab_size
        self.model.transformer["ff_out"] = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @property
    def lm_head(self) -> nn.Module:
        return self.model.transformer["ff_out"]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.transformer["ff_out"] = new_embeddings
