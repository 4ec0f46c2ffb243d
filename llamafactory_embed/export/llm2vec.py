"""What the llm2vec package (BehnamGhader et al. 2024) loads: `LLM2Vec.from_pretrained`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModel, AutoTokenizer, PretrainedConfig

from ..cards.header import Relation
from ..data.prompts import TEMPLATES
from ..encoder.encoder import Encoder
from ..files import write_json
from ..hparams.embedding import EmbeddingOptions
from ..loading.checkpoint import load_backbone
from ..loading.llm2vec_adapters import LLM2VEC_SETTINGS, ModuleNames, save_as_llm2vec
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from .card import write_card_page
from .folder import new_folder
from .options import Dtype
from .tokenizer_files import save_tokenizer
from .verify import check_same
from .weights import find_base, find_dtype, load_merged, read_model_config, round_weights, save_weights


POOLINGS = {"mean": "mean", "weighted_mean": "weighted_mean", "bos": "bos_token"}
MAX_LENGTH, DOC_MAX_LENGTH = 512, 400  # the package's own
MODELS = ("llama", "mistral", "gemma", "qwen2")  # of its release 0.2.3


def export_llm2vec(
    checkpoint: str | Path,
    target: str | Path,
    *,
    dtype: Dtype = "auto",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    device: str = "cpu",
) -> list[str]:
    """An adapter with the names of a bare decoder if the checkpoint has one directly on its base model, merged weights
    otherwise. Returns remarks about its use."""
    config = read_config(checkpoint)
    model_config = read_model_config(checkpoint, config)
    check_fits(config, model_config)
    is_adapter = (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file() and not config.merged_adapters
    with new_folder(target, checkpoint, overwrite) as folder:
        name, library = Path(target).name, "peft" if is_adapter else "transformers"
        relation: Relation = "adapter" if is_adapter else "finetune"
        write_card_page(folder, name, checkpoint, config, library, relation, describe_model(name, config, is_adapter))
        if is_adapter:
            _write_adapter(checkpoint, config, model_config, folder, device)
        else:
            saved_dtype = find_dtype(model_config, dtype)
            _write_weights(checkpoint, config, saved_dtype, max_shard_size, folder, device)
    return describe_use(config)


def read_config(checkpoint: str | Path) -> EmbeddingConfig:
    """An embedder's configuration. The adapter of a language model, for instance of masked next-token prediction, gets
    the package's own."""
    folder = Path(checkpoint)
    if (folder / CONFIG_NAME).is_file() or not (folder / ADAPTER_CONFIG_NAME).is_file():
        return EmbeddingConfig.load(checkpoint)
    options = EmbeddingOptions(query_template="llm2vec", skip_instruction=True, document_max_length=DOC_MAX_LENGTH)
    base = PeftConfig.from_pretrained(checkpoint).base_model_name_or_path
    return EmbeddingConfig.from_options(options, cutoff_len=MAX_LENGTH, base_model=base)


def check_fits(config: EmbeddingConfig, model: PretrainedConfig) -> None:
    """Refuse what the package would pool, mask or build differently."""
    if config.attention != "bidirectional":
        raise ValueError("`--layout llm2vec` is for bidirectional models, and this one has `attention: causal`.")
    config.require_one_vector("`--layout llm2vec`")
    if config.dense:
        raise ValueError(
            f"LLM2Vec has no layers behind its pooling, and this model has `dense_sizes: {config.dense_sizes}`: use "
            "`--layout sentence-transformers`."
        )
    if config.pooling == "mask":
        raise ValueError(
            "LLM2Vec appends no mask tokens, which `pooling: mask` reads: serve this checkpoint with `Encoder` or "
            "`llamafactory-embed serve`."
        )
    if config.pooling not in POOLINGS:
        raise ValueError(
            f"LLM2Vec knows the poolings {', '.join(POOLINGS)} and appends no EOS, so it cannot pool like `pooling: "
            f"{config.pooling}`: use `--layout sentence-transformers`."
        )
    if model.model_type not in MODELS:
        raise ValueError(
            f"LLM2Vec has classes for {', '.join(MODELS)}, not for {model.model_type}: use `--layout "
            "sentence-transformers`."
        )


def llm2vec_settings(config: EmbeddingConfig) -> dict[str, Any]:
    """The content of llm2vec_config.json."""
    return {
        "pooling_mode": POOLINGS[config.pooling],
        "max_length": longest_text(config),
        "doc_max_length": config.document_max_length,
        "skip_instruction": config.skip_instruction,
    }


def longest_text(config: EmbeddingConfig) -> int:
    """The one limit that the package knows."""
    return max(config.query_max_length, config.document_max_length)


def describe_use(config: EmbeddingConfig) -> list[str]:
    """Where the package treats a text differently from us."""
    remarks = [
        "LLM2Vec shortens long texts by whole words, and with `skip_instruction` counts a text's tokens when it "
        "stands alone: the embeddings of such texts differ slightly."
    ]
    if TEMPLATES.get(config.query_template, config.query_template) != TEMPLATES["llm2vec"]:
        remarks.append(
            f"LLM2Vec puts a space between instruction and text, but this model was trained with `query_template: "
            f"{config.query_template}`: give it the whole prompt as the instruction."
        )
    return remarks


def describe_model(name: str, config: EmbeddingConfig, is_adapter: bool) -> list[str]:
    """The lines of the model card."""
    if is_adapter:
        call = f'LLM2Vec.from_pretrained("{config.base_model}", peft_model_name_or_path="{name}")'
    else:
        call = f'LLM2Vec.from_pretrained("{name}")'
    return [
        "A text embedder in the layout of LLM2Vec, trained with llamafactory-embed, a plugin of LLaMA-Factory.",
        "",
        "```python",
        "from llm2vec import LLM2Vec",
        "",
        f"model = {call}",
        'vectors = model.encode(["a document", "another one"])',
        "```",
        "",
        *(line for remark in describe_use(config) for line in (remark, "")),
    ]


def _write_adapter(
    checkpoint: str | Path, config: EmbeddingConfig, model_config: PretrainedConfig, folder: Path, device: str
) -> None:
    base = find_base(checkpoint, config)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    made = folder / "made"
    save_as_llm2vec(checkpoint, made, ModuleNames.of_config(model_config), llm2vec_settings(config), tokenizer)
    for path in made.iterdir():
        os.rename(path, folder / path.name)
    made.rmdir()
    contents = json.loads((folder / ADAPTER_CONFIG_NAME).read_text("utf-8"))
    write_json(folder / ADAPTER_CONFIG_NAME, contents | {"base_model_name_or_path": base})
    save_tokenizer(tokenizer, folder, append_eos=False, max_length=longest_text(config))

    decoder = AutoModel.from_pretrained(base, dtype=torch.float32)
    decoder = PeftModel.from_pretrained(decoder, str(folder)).merge_and_unload()
    loaded = EmbeddingModel(decoder, config).eval().to(device)
    original = EmbeddingModel(load_backbone(checkpoint, config, torch.float32), config).eval().to(device)
    check_same(Encoder(original, tokenizer), Encoder(loaded, tokenizer), "PEFT on a bare decoder")


def _write_weights(
    checkpoint: str | Path,
    config: EmbeddingConfig,
    dtype: torch.dtype,
    max_shard_size: str,
    folder: Path,
    device: str,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = load_merged(checkpoint, device)
    round_weights(model, dtype)
    write_json(folder / LLM2VEC_SETTINGS, llm2vec_settings(config))
    save_weights(model, folder, dtype, max_shard_size)
    save_tokenizer(tokenizer, folder, append_eos=False, max_length=longest_text(config))
    loaded = EmbeddingModel(AutoModel.from_pretrained(folder, dtype=torch.float32), config).eval().to(device)
    check_same(Encoder(model, tokenizer), Encoder(loaded, AutoTokenizer.from_pretrained(folder)), "transformers")
