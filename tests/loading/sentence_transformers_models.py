"""Tiny random models in folders that sentence-transformers itself has written."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from tests.embedders import PROSE
from tests.tiny_models import FAMILIES, HIDDEN_SIZE, tiny_config, tiny_tokenizer


LENGTH = 24
# Of one token and of many; the last ones are longer than `LENGTH` tokens, with a prompt and without.
TEXTS = ["a", "Where?", "", *(line[:size] for line, size in zip(PROSE, (8, 20, 30, 60, 90, 200), strict=False))]
PROMPTS = {"query": "Find the line:\n ", "document": "Line: ", "other": " {odd} "}

# What encoders need besides the sizes of `tiny_config`.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "gelu"},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {},
    "electra": {},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 1},
    "mpnet": {},
}


def architecture(model_type: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of that type."""
    if model_type not in ENCODERS:
        return tiny_config(model_type, **overrides)
    sizes = {
        "vocab_size": 300,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **(sizes | ENCODERS[model_type] | overrides))


def tokenizer(ends_with_eos: bool) -> PreTrainedTokenizerFast:
    """That of `tiny_models`, whose post-processor may also put a token behind a text."""
    made = copy.deepcopy(tiny_tokenizer())
    if ends_with_eos:
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return made


def write_model(
    folder: Path,
    model_type: str,
    pooling: str = "mean",
    dense: Sequence[Any] = (),
    *,
    prompts: dict[str, str] | None = None,
    ends_with_eos: bool = False,
    classic: bool = False,
    include_prompt: bool = True,
    **overrides: Any,
) -> Path:
    """Save the model; `dense` are pairs of a size and an activation."""
    torch.manual_seed(0)
    model = AutoModel.from_config(architecture(model_type, **overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    base = folder.with_name(f"{folder.name}-base")
    model.save_pretrained(base)
    made = tokenizer(ends_with_eos or model_type in ENCODERS)
    made.model_max_length = LENGTH
    made.save_pretrained(base)

    modules: list[Any] = [Transformer(str(base)), Pooling(HIDDEN_SIZE, pooling, include_prompt=include_prompt)]
    size = HIDDEN_SIZE
    for next_size, activation in dense:
        modules.append(Dense(size, next_size, activation_function=activation))
        size = next_size
    written = SentenceTransformer(modules=[*modules, Normalize()], prompts=prompts or PROMPTS, device="cpu")
    written.save(str(folder), create_model_card=False)
    if classic:
        make_classic(folder)
    return folder


def make_classic(folder: Path) -> None:
    """The files as releases before 6 have written them."""

    def edit(name: str, change: Any) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), encoding="utf-8")

    def rename_types(modules: Any) -> Any:
        return [each | {"type": f"sentence_transformers.models.{each['type'].split('.')[-1]}"} for each in modules]

    def mark_mode(settings: Any) -> Any:
        mode = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}[settings["pooling_mode"]]
        modes = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "lasttoken")
        marked = {f"pooling_mode_{each}": each == mode for each in modes}
        return {"word_embedding_dimension": settings["embedding_dimension"], **marked}

    edit("modules.json", rename_types)
    edit("1_Pooling/config.json", mark_mode)
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": LENGTH, "do_lower_case": False}), encoding="utf-8"
    )


def decoders() -> list[str]:
    """The families of `tiny_models` that sentence-transformers loads without code of ours."""
    return [family for family in FAMILIES if family not in ("dream", "llada", "gemma3")]
