"""The two models of a run: the proxy that trains, and the reference that it is compared with.

The reference says what a model trained on uniform weights makes of a query: frozen, in eval mode, in no optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from llamafactory.extras import logging
from llamafactory.model import load_tokenizer
from llamafactory.train.trainer_utils import create_ref_model
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from ....data.retrieval.rows import Example
from ....hparams.tdro import TdroOptions
from ....loading.adapter_chain import find_chain
from ....loading.attention_pool import ATTENTION_POOL_NAME
from ....loading.backbone import attention_backend, with_adapters_of_causal_lm
from ....loading.checkpoint import POOLER_NAME
from ....loading.embedder import SERVED_ALIKE, continue_pooler, load_embedding_model_for_training
from ....loading.start import ask_hub, place_of
from ....loading.weights import weights_must_fit
from ....model.embedding import EmbeddingModel
from ....model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ....model.packed import PackedBatch
from ..grad_cache import RandomState
from .batch import ReferenceFunction, TdroBatch, TdroCollator, query_losses
from .reference_cache import cache_path, fill_cache


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ModelLoader:
    """Loads proxy and reference in the order that holds the fewest weights at a time."""

    options: TdroOptions
    config: EmbeddingConfig
    tokenizer: PreTrainedTokenizerBase
    collator: TdroCollator
    model_args: ModelArguments
    training_args: TrainingArguments
    finetuning_args: FinetuningArguments

    def load(
        self, examples_of_run: Callable[[], Iterable[Example]]
    ) -> tuple[EmbeddingModel, ReferenceFunction | None]:
        """The proxy and the reference. With `tdro_cache_reference` a separate reference model is freed before the
        proxy is loaded."""
        options = self.options
        if not options.needs_reference:
            return self._load_proxy(), None

        is_proxys_base = shares_weights_with_proxy(self.finetuning_args)
        if options.tdro_cache_reference and not is_proxys_base:
            random_state = RandomState(self.training_args.device)  # the proxy starts from the same, cache or not
            reference = self._cached(examples_of_run(), self._load_separate_reference)
            random_state.restore()
            return self._load_proxy(), reference

        proxy = self._load_proxy()
        if not is_proxys_base:
            return proxy, self._load_separate_reference()
        switched_off = AdapterSwitchedOff(proxy, options)
        if not options.tdro_cache_reference:
            return proxy, switched_off
        return proxy, self._cached(examples_of_run(), lambda: switched_off)

    def _load_proxy(self) -> EmbeddingModel:
        return load_embedding_model_for_training(
            self.tokenizer, self.config, self.model_args, self.finetuning_args, self.training_args
        )

    def _load_separate_reference(self) -> ReferenceFunction:
        if is_deepspeed_zero3_enabled() or is_fsdp_enabled():
            raise ValueError(
                "`ref_model` is a second whole model, which ZeRO-3 and FSDP would cut into shards: train a LoRA and "
                "leave `ref_model` out, use ZeRO-2, or fill `tdro_cache_reference` in a run without them."
            )
        model = load_reference(self.tokenizer, self.config, self.model_args, self.finetuning_args, self.training_args)
        return SeparateReference(model, self.options)

    def _cached(self, examples: Iterable[Example], load: Callable[[], ReferenceFunction]) -> ReferenceFunction:
        start, adapters = reference_checkpoints(self.finetuning_args, self.model_args)
        folder = self.model_args.cache_dir or self.training_args.output_dir
        path = cache_path(folder, [start, *adapters], self.config, self.options, self.model_args.compute_dtype)
        return fill_cache(path, examples, self.collator, self.training_args.per_device_train_batch_size, load)


class SeparateReference:
    """A second model beside the proxy."""

    def __init__(self, model: EmbeddingModel, options: TdroOptions) -> None:
        self.model = model.requires_grad_(False).eval()
        self.options = options

    @torch.no_grad()
    def __call__(self, batch: TdroBatch, forwards: Sequence[PackedBatch]) -> Tensor:
        return query_losses(self.model(forwards), batch, self.options)


class AdapterSwitchedOff:
    """The proxy without its adapter: a reference that takes no memory."""

    def __init__(self, proxy: EmbeddingModel, options: TdroOptions) -> None:
        if proxy.pooling_weights():
            raise ValueError(
                f"`{proxy.embedding_config.pooling_options}` is trained together with the adapter, so the proxy with "
                "its adapter switched off is not a reference: name one in `ref_model`."
            )
        self.proxy = proxy
        self.options = options

    @torch.no_grad()
    def __call__(self, batch: TdroBatch, forwards: Sequence[PackedBatch]) -> Tensor:
        backbone = self.proxy.backbone
        assert isinstance(backbone, PeftModel)
        was_training = self.proxy.training
        self.proxy.eval()
        with backbone.disable_adapter():
            losses = query_losses(self.proxy(forwards), batch, self.options)
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
    """Load `ref_model` with `ref_model_adapters`, or what the proxy starts from, as the host loads reference models.
    `config` is the proxy's; it also holds for a reference that is no embedder yet."""
    start, adapters = reference_checkpoints(finetuning_args, model_args)
    checkpoint = adapters[-1] if adapters else start
    check_served_alike(checkpoint, config)

    reference_args = copy.copy(model_args)
    reference_args.model_name_or_path, reference_args.adapter_name_or_path = start, adapters or None
    if not reads_the_same(tokenizer, load_tokenizer(reference_args)["tokenizer"]):
        raise ValueError(
            f"`ref_model: {start}` has another tokenizer than `model_name_or_path: {model_args.model_name_or_path}`: "
            "both read the same tokens, so take a reference of the same family."
        )
    renamed = with_adapters_of_causal_lm(reference_args, training_args).adapter_name_or_path
    host_args = copy.copy(finetuning_args)
    host_args.ref_model = start
    host_args.ref_model_adapters = ",".join(renamed) if renamed else None
    with weights_must_fit():
        backbone = create_ref_model(model_args, host_args)
    model = EmbeddingModel(backbone, config, backend=attention_backend(model_args.flash_attn))
    has_pooling = any(Path(checkpoint, name).is_file() for name in (POOLER_NAME, ATTENTION_POOL_NAME))
    if model.pooling_weights() and not has_pooling:
        raise ValueError(f"The reference {checkpoint} has no {POOLER_NAME}, which `{config.pooling_options}` needs.")
    continue_pooler(model, checkpoint)
    model.pooler.to(model.device)
    model.dense.to(model.device)
    logger.info_rank0(f"The reference is {', '.join([start, *adapters])}.")
    return model


def reference_checkpoints(finetuning_args: FinetuningArguments, model_args: ModelArguments) -> tuple[str, list[str]]:
    """The model and the adapters that make up the reference, those included that its checkpoint has merged."""
    start = finetuning_args.ref_model or model_args.model_name_or_path
    if finetuning_args.ref_model is not None:
        start, below = resolve_reference(start, model_args)
        if below:
            return start, [*below, *named_adapters(finetuning_args)]
    if shares_weights_with_proxy(finetuning_args):
        return start, list(model_args.adapter_name_or_path or [])  # merged into the proxy's base
    adapters = named_adapters(finetuning_args)
    if adapters and Path(adapters[-1], CONFIG_NAME).is_file():
        merged = EmbeddingConfig.load(adapters[-1]).merged_adapters
        adapters = [name for name in merged if name not in adapters] + adapters
    return start, adapters


def named_adapters(finetuning_args: FinetuningArguments) -> list[str]:
    """The names in `ref_model_adapters`."""
    return [name.strip() for name in (finetuning_args.ref_model_adapters or "").split(",") if name.strip()]


def resolve_reference(name: str, model_args: ModelArguments) -> tuple[str, list[str]]:
    """The model and the adapters that `ref_model` is made of. What the hub does not give is left to the host."""
    try:
        chain = find_chain(name, None, None, ask_hub(model_args))
    except ValueError as error:
        if Path(name).is_dir():
            raise ValueError(f"`ref_model`: {error}") from error
        return name, []
    return place_of(chain[0]), [place_of(each) for each in chain[1:]]


def reads_the_same(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same tokens to every text. Special tokens that only one of them knows do no
    harm (`[PAD]` in tDRO's models): nothing writes them into a text, and packed rows have no padding."""
    vocabularies = [each.get_vocab() for each in (tokenizer, other)]
    shared = vocabularies[0].keys() & vocabularies[1].keys()
    if any(vocabularies[0][token] != vocabularies[1][token] for token in shared):
        return False
    special = {
        str(token) for each in (tokenizer, other) for token in each.added_tokens_decoder.values() if token.special
    }
    return vocabularies[0].keys() ^ vocabularies[1].keys() <= special


def check_served_alike(checkpoint: str, config: EmbeddingConfig) -> None:
    """Refuse a reference that would not read the proxy's batches as it was trained to."""
    if not Path(checkpoint, CONFIG_NAME).is_file():
        return
    trained = EmbeddingConfig.load(checkpoint)
    changed = [name for name in SERVED_ALIKE if getattr(trained, name) != getattr(config, name)]
    if changed:
        settings = ", ".join(f"`{name}: {getattr(trained, name)}`" for name in changed)
        raise ValueError(f"The reference {checkpoint} was trained with {settings}: set the recipe alike.")
