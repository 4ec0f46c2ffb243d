"""The reference: what a model trained on uniform weights makes of a query. Frozen, in eval mode, in no optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from llamafactory.extras import logging
from llamafactory.model import load_tokenizer
from llamafactory.train.trainer_utils import create_ref_model
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ....hparams.contrastive import ComparisonOptions
from ....loading.backbone import attention_backend, with_adapters_of_causal_lm
from ....loading.checkpoint import POOLER_NAME
from ....loading.embedder import SERVED_ALIKE, continue_pooler
from ....loading.weights import ADAPTER_CONFIG_NAME, weights_must_fit
from ....model.embedding import EmbeddingModel
from ....model.embedding_config import CONFIG_NAME, EmbeddingConfig
from .batch import TdroBatch, query_losses


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


logger = logging.get_logger(__name__)

ReferenceFunction = Callable[[TdroBatch], Tensor]  # → the losses of its rows, [B]


class SeparateReference:
    """A model of its own beside the proxy."""

    def __init__(self, model: EmbeddingModel, options: ComparisonOptions) -> None:
        self.model = model.requires_grad_(False).eval()
        self.options = options

    @torch.no_grad()
    def __call__(self, batch: TdroBatch) -> Tensor:
        return query_losses(self.model(batch.packed), batch, self.options)


class AdapterSwitchedOff:
    """The proxy without its adapter: a reference that takes no memory."""

    def __init__(self, proxy: EmbeddingModel, options: ComparisonOptions) -> None:
        if next(proxy.pooler.parameters(), None) is not None:
            raise ValueError(
                f"`pooling: {proxy.embedding_config.pooling}` is trained together with the adapter, so that the proxy "
                "with its adapter switched off is no reference: name one in `ref_model`."
            )
        self.proxy = proxy
        self.options = options

    @torch.no_grad()
    def __call__(self, batch: TdroBatch) -> Tensor:
        backbone = self.proxy.backbone
        assert isinstance(backbone, PeftModel)
        was_training = self.proxy.training
        self.proxy.eval()
        with backbone.disable_adapter():
            losses = query_losses(self.proxy(batch.packed), batch, self.options)
        self.proxy.train(was_training)
        return losses


def shares_weights_with_proxy(finetuning_args: FinetuningArguments) -> bool:
    """Whether the reference is the proxy's base: the host's rule for reference models."""
    return finetuning_args.ref_model is None and finetuning_args.finetuning_type == "lora"


def load_reference(
    tokenizer: PreTrainedTokenizerBase,
    config: EmbeddingConfig,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> EmbeddingModel:
    """Load `ref_model` with `ref_model_adapters`, or the proxy's start where there is none, as the host loads
    reference models. `config` is the proxy's; it also holds for a reference that is no embedder yet."""
    start, adapters = reference_checkpoints(finetuning_args, model_args)
    checkpoint = adapters[-1] if adapters else start
    check_served_alike(checkpoint, config)

    own_args = copy.copy(model_args)
    own_args.model_name_or_path, own_args.adapter_name_or_path = start, adapters or None
    if load_tokenizer(own_args)["tokenizer"].get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"`ref_model: {start}` has another tokenizer than `model_name_or_path: {model_args.model_name_or_path}`: "
            "both read the same tokens, so train the reference from the same family."
        )
    renamed = with_adapters_of_causal_lm(own_args, training_args).adapter_name_or_path
    host_args = copy.copy(finetuning_args)
    host_args.ref_model = start
    host_args.ref_model_adapters = ",".join(renamed) if renamed else None
    with weights_must_fit():
        backbone = create_ref_model(model_args, host_args)
    model = EmbeddingModel(backbone, config, backend=attention_backend(model_args.flash_attn))
    if model.pooler.state_dict() and not Path(checkpoint, POOLER_NAME).is_file():
        raise ValueError(f"The reference {checkpoint} has no {POOLER_NAME}, which `pooling: {config.pooling}` needs.")
    continue_pooler(model, checkpoint)
    model.pooler.to(model.device)
    logger.info_rank0(f"The reference is {', '.join([start, *adapters])}.")
    return model


def reference_checkpoints(finetuning_args: FinetuningArguments, model_args: ModelArguments) -> tuple[str, list[str]]:
    """The model and the adapters that make the reference, those included that its checkpoint has merged before."""
    start = finetuning_args.ref_model or model_args.model_name_or_path
    if Path(start, ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(
            f"`ref_model: {start}` is an adapter: name it in `ref_model_adapters`, and its base model in `ref_model`."
        )
    if shares_weights_with_proxy(finetuning_args):
        return start, list(model_args.adapter_name_or_path or [])  # merged into the proxy's base
    adapters = [name.strip() for name in (finetuning_args.ref_model_adapters or "").split(",") if name.strip()]
    if adapters and Path(adapters[-1], CONFIG_NAME).is_file():
        merged_before = EmbeddingConfig.load(adapters[-1]).merged_adapters
        adapters = [name for name in merged_before if name not in adapters] + adapters
    return start, adapters


def check_served_alike(checkpoint: str, config: EmbeddingConfig) -> None:
    """Refuse a reference that would read the proxy's batches otherwise than it was trained to."""
    if not Path(checkpoint, CONFIG_NAME).is_file():
        return
    trained = EmbeddingConfig.load(checkpoint)
    changed = [name for name in SERVED_ALIKE if getattr(trained, name) != getattr(config, name)]
    if changed:
        wanted = ", ".join(f"`{name}: {getattr(trained, name)}`" for name in changed)
        raise ValueError(f"The reference {checkpoint} was trained with {wanted}: set the recipe alike.")
