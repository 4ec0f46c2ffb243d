"""The two models of a run: the proxy that trains, and the reference that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from ....data.retrieval.rows import Example
from ....hparams.tdro import TdroOptions
from ....loading.embedder import load_embedding_model_for_training
from ....model.embedding import EmbeddingModel
from ....model.embedding_config import EmbeddingConfig
from ..grad_cache import RandomState
from .batch import TdroCollator
from .reference import (
    AdapterSwitchedOff,
    ReferenceFunction,
    SeparateReference,
    load_reference,
    reference_checkpoints,
    shares_weights_with_proxy,
)
from .reference_cache import cache_path, fill_cache


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


@dataclass(frozen=True)
class ModelLoader:
    """Loads them in an order that holds as few weights at a time as it can."""

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
        """The proxy and the reference. With `tdro_cache_reference` a reference of its own is gone before the proxy
        comes."""
        options = self.options
        if not options.needs_reference:
            return self._load_proxy(), None

        is_proxys_base = shares_weights_with_proxy(self.finetuning_args)
        if options.tdro_cache_reference and not is_proxys_base:
            random_state = RandomState(self.training_args.device)  # the proxy starts alike with and without a cache
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
                "`ref_model` is a second whole model, which ZeRO-3 and FSDP would cut into shards: train a LoRA with "
                "its adapter switched off as the reference, use ZeRO-2, or fill `tdro_cache_reference` in a run "
                "without them."
            )
        model = load_reference(self.tokenizer, self.config, self.model_args, self.finetuning_args, self.training_args)
        return SeparateReference(model, self.options)

    def _cached(self, examples: Iterable[Example], load: Callable[[], ReferenceFunction]) -> ReferenceFunction:
        start, adapters = reference_checkpoints(self.finetuning_args, self.model_args)
        folder = self.model_args.cache_dir or self.training_args.output_dir
        path = cache_path(folder, [start, *adapters], self.config, self.options, self.model_args.compute_dtype)
        return fill_cache(path, examples, self.collator, self.training_args.per_device_train_batch_size, load)
