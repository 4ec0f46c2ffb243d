"""Tiny models of every supported family and a real byte-level BPE tokenizer, built locally in milliseconds."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llamafactory_embed.model.families import find_family


VOCABULARY_SIZE = 300
HIDDEN_SIZE = 32

# What a family needs besides the common sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 4},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {},
    "gpt2": {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 4, "n_positions": 512, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "dream": {"model_type": "Dream", "vocab_size": VOCABULARY_SIZE + 1, "mask_token_id": VOCABULARY_SIZE},
    "llada": {"vocab_size": VOCABULARY_SIZE + 1, "mask_token_id": VOCABULARY_SIZE},
}  # fmt: skip
# Those that can only be causal.
HYBRID_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1],
        },
    }
}  # fmt: skip


def tiny_config(family: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of that family."""
    values: dict[str, Any] = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family != "gpt2":
        values |= {
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
    values |= (FAMILIES | HYBRID_FAMILIES)[family] | overrides
    model_type = values.pop("model_type", family)
    return AutoConfig.for_model(model_type, **values)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random `*ForCausalLM` in float32 and eval mode whose weights are large enough for every token to matter."""
    config = tiny_config(family, **overrides)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    torch.set_rng_state(generator_state)
    return model.eval()


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: bos in front, nothing behind, ids below `VOCABULARY_SIZE`."""
    text = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )


def save_tiny_model(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A folder that `from_pretrained` reads: weights, configuration and tokenizer, with a mask token if the family has
    one."""
    model = tiny_model(family, seed, **overrides)
    model.save_pretrained(folder)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    family_facts = find_family(model.config)
    if family_facts is not None and family_facts.mask_token is not None:
        tokenizer.add_special_tokens({"mask_token": family_facts.mask_token})
    tokenizer.save_pretrained(folder)
    return folder
