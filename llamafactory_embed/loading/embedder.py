"""From a recipe to an `EmbeddingModel` around what the host loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.extras import logging
from transformers import PreTrainedTokenizerBase

from ..hparams.embedding import EmbeddingOptions
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ..model.mask_token import MaskedTokenRecord, load_mask_embedding
from ..model.tensor_files import load_safetensors
from .attention_pool import ATTENTION_POOL_NAME, AttentionPoolShape, read_attention_pool
from .backbone import (
    adapter_folders,
    attention_backend,
    hub_options,
    load_backbone_for_training,
    load_config,
)
from .checkpoint import POOLER_NAME
from .masked_tokens import MaskedTokenRequest, resolve_masked_tokens
from .sentence_transformers_folder import is_sentence_transformers_folder, load_dense_modules, read_dense_layers


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


logger = logging.get_logger(__name__)

# The options that a checkpoint and a recipe that evaluates it should agree on.
SERVED_ALIKE = (
    "attention",
    "sliding_window",
    "pooling",
    "mask_tokens",
    "mask_token",
    "multi_vector",
    "skip_instruction",
    "query_template",
    "document_template",
    "dense_sizes",
)


def load_embedding_model_for_training(
    tokenizer: PreTrainedTokenizerBase,
    config: EmbeddingConfig,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> EmbeddingModel:
    """Load the language model as every stage of the host does (LoRA, QLoRA, freeze, full, Liger, …) and put the pooler
    on it."""
    options: EmbeddingOptions = finetuning_args.stage_options
    loaded = load_backbone_for_training(tokenizer, model_args, finetuning_args, training_args)
    config = dataclasses.replace(config, merged_adapters=loaded.merged_adapters)
    backend = attention_backend(model_args.flash_attn)
    model = EmbeddingModel(loaded.model, config, backend, latents_init_std=options.latents_init_std)
    continue_pooler(model, loaded.start)
    if not training_args.do_train:
        warn_of_changes(model, loaded.start)
    return model


def with_mask_token(
    config: EmbeddingConfig, asked: str | None, tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments
) -> EmbeddingConfig:
    """The configuration with the token that `pooling: mask` appends, found as everything that hides tokens finds it.
    One that the model has no row for is refused: its embedding would be that of nothing."""
    if config.pooling != "mask":
        return config
    folders, hub = [model_args.model_name_or_path, *adapter_folders(model_args)], hub_options(model_args)
    record, model_config = MaskedTokenRecord.find(folders, **hub), load_config(model_args)
    found = resolve_masked_tokens(MaskedTokenRequest(asked), record, model_config, tokenizer, needs_family=False).mask
    is_beside_adapter = record is not None and record.mask_token_id == found.id
    is_beside_adapter = is_beside_adapter and load_mask_embedding(folders, **hub) is not None
    if found.is_added or found.id >= model_config.vocab_size:
        raise ValueError(
            f"`pooling: mask` appends a token, and {model_args.model_name_or_path} has no mask token: name one that "
            "it has, `mask_token: eos` or any text that is one token, or train one first (`stage: mntp` or `ddm`)."
        )
    if is_beside_adapter:
        raise ValueError(
            f"The embedding of {found.text!r} lies beside the adapter {folders[-1]}, where `pooling: mask` does not "
            "read it: merge the adapter first (`llamafactory-cli export`), or name another `mask_token`."
        )
    return dataclasses.replace(config, mask_token=tokenizer.convert_ids_to_tokens(found.id))


def continue_pooler(model: EmbeddingModel, start: str) -> None:
    """Take over the pooler of the checkpoint that the recipe starts from, and the layers behind it (also those of a
    folder of sentence-transformers), each if it is of the same kind."""
    path, now = Path(start, POOLER_NAME), model.embedding_config
    if not path.is_file():
        continue_attention_pool(model, Path(start, ATTENTION_POOL_NAME))
        if is_sentence_transformers_folder(start) and now.dense == read_dense_layers(start):
            load_dense_modules(model, start)
        return
    weights, saved = load_safetensors(path), EmbeddingConfig.load(start)
    own = model.pooling_weights()
    for name in own:
        same = saved.dense == now.dense if name.startswith("dense.") else saved.pooling == now.pooling
        if not same:
            weights[name] = own[name]
    if saved.dense and saved.dense != now.dense:
        logger.warning_rank0(
            f"`dense_sizes: {saved.dense_sizes}` of {start} are not the recipe's, whose layers start anew."
        )
    try:
        model.load_pooling_weights({name: weights[name] for name in own if name in weights})
    except RuntimeError as error:
        raise ValueError(
            f"The pooler in {start} was trained with `latents: {saved.latents}`, `latent_heads: {saved.latent_heads}` "
            f"and `latent_head_size: {saved.latent_head_size}`: set them alike."
        ) from error


def continue_attention_pool(model: EmbeddingModel, path: Path) -> None:
    """Take over the pooler that Pooling-and-Attention's authors keep beside an adapter, if it is of the same kind."""
    if not path.is_file():
        return
    shape, config = AttentionPoolShape.of_file(path), model.embedding_config
    if shape.pooling != config.pooling:
        return
    state = read_attention_pool(path, model.config.num_hidden_layers)
    try:
        model.pooler.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds {shape.latents} latents read by heads of {shape.width} numbers together: set `latents: "
            f"{shape.latents}`, and `latent_heads` times `latent_head_size` alike."
        ) from error


def warn_of_changes(model: EmbeddingModel, checkpoint: str) -> None:
    """Warn where an evaluation differs from the checkpoint that it evaluates."""
    if not Path(checkpoint, CONFIG_NAME).is_file():
        return
    trained, now = EmbeddingConfig.load(checkpoint), model.embedding_config
    changed = [
        f"`{name}: {getattr(trained, name)}`" for name in SERVED_ALIKE if getattr(trained, name) != getattr(now, name)
    ]
    if changed:
        logger.warning_rank0(f"{checkpoint} was trained with {', '.join(changed)}; the recipe says otherwise.")
