"""The tokenizer of an exported folder: EOS after every text where the pooling reads it, without our code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.tokenization import SpecialTokens, find_special_tokens
from ..files import write_json


TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, append_eos: bool, max_length: int) -> None:
    """Write the tokenizer so that any program that loads it puts the same tokens around a text as training did."""
    tokenizer = copy.deepcopy(tokenizer)
    special = find_special_tokens(tokenizer, append_eos)
    adds_eos = special != find_special_tokens(tokenizer, append_eos=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has neither a `pad_token` nor an `eos_token` to pad with: set one.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # models with learned positions count them from the first column
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)

    settings = json.loads((folder / TOKENIZER_CONFIG_FILE).read_text("utf-8"))
    settings |= {"padding_side": "right", "model_max_length": max_length}
    settings["model_input_names"] = list(tokenizer.model_input_names)  # transformers 4 would add token_type_ids
    if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name for what 4 and 5 call so:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path = folder / TOKENIZER_FILE
    if adds_eos and not path.is_file():
        raise ValueError(
            f"{type(tokenizer).__name__} has no {TOKENIZER_FILE} that could say that EOS ends every text: use the "
            "fast version of this tokenizer."
        )
    if path.is_file():
        contents = json.loads(path.read_text("utf-8"))
        contents |= {"truncation": None, "padding": None}  # what the last call set, not what the model needs
        write_merges_as_before(contents["model"])
        if adds_eos:
            contents["post_processor"] = with_trailing_tokens(contents.get("post_processor"), tokenizer, special)
        write_json(path, contents)
    if adds_eos:
        set_flags(settings, tokenizer, special)
    write_json(folder / TOKENIZER_CONFIG_FILE, settings)


def write_merges_as_before(model: dict[str, Any]) -> None:
    """Merges of a BPE model as texts, `a b`, which every release of the tokenizers library reads; pairs, which it
    writes since 0.20, only the newer ones do. A pair of which one side holds a blank can only be a pair."""
    merges = model.get("merges") or []
    if merges and all(isinstance(merge, list) and not any(" " in part for part in merge) for merge in merges):
        model["merges"] = [" ".join(merge) for merge in merges]


def set_flags(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> None:
    """Let the flags say what the post-processor does. transformers 5 goes by the post-processor, but tokenizers of
    transformers 4 for Llama and Gemma, which servers use, build it anew from the flags, by default without EOS."""
    settings.pop("add_bos_token", None)
    settings.pop("add_eos_token", None)
    if special.leading in ((), (tokenizer.bos_token_id,)) and special.trailing == (tokenizer.eos_token_id,):
        settings |= {"add_bos_token": bool(special.leading), "add_eos_token": True}


def with_trailing_tokens(
    post_processor: dict[str, Any] | None, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens
) -> dict[str, Any]:
    """A post-processor that puts these special tokens around a text. Of the old one the ByteLevel step remains, which
    adds no tokens but trims offsets."""
    steps = [] if post_processor is None else [post_processor]
    if post_processor is not None and post_processor["type"] == "Sequence":
        steps = post_processor["processors"]
    kept = [step for step in steps if step["type"] == "ByteLevel"]
    template = make_template(tokenizer, special)
    return {"type": "Sequence", "processors": [*kept, template]} if kept else template


def make_template(tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> dict[str, Any]:
    """A TemplateProcessing step of the tokenizers library; each text of a pair is framed like a single one."""
    added = [*special.leading, *special.trailing]
    names = dict(zip(added, tokenizer.convert_ids_to_tokens(added), strict=True))

    def frame(letter: str, type_id: int) -> list[dict[str, Any]]:
        def pieces(tokens: tuple[int, ...]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": names[token], "type_id": type_id}} for token in tokens]

        text = {"Sequence": {"id": letter, "type_id": type_id}}
        return [*pieces(special.leading), text, *pieces(special.trailing)]

    return {
        "type": "TemplateProcessing",
        "single": frame("A", 0),
        "pair": [*frame("A", 0), *frame("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()},
    }
