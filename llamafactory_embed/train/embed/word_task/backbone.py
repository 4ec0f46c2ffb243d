"""The model below the classifier: a decoder as the host loads it, or an encoder."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, PreTrainedTokenizerBase

from ....hparams.word_task import WordTaskOptions
from ....loading.backbone import LoadedBackbone, hub_options, load_backbone_for_training, load_config
from ....loading.weights import weights_must_fit
from .tagger import is_encoder


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


def check_what_learns(options: WordTaskOptions, finetuning_args: FinetuningArguments) -> None:
    """`train_backbone` and the host's `finetuning_type` must not contradict each other."""
    learns, kind = options.train_backbone, finetuning_args.finetuning_type
    if learns != "frozen" and learns != kind:
        raise ValueError(
            f"`train_backbone: {learns}` and `finetuning_type: {kind}` contradict each other: set both to {learns}."
        )


def load_backbone(
    tokenizer: PreTrainedTokenizerBase,
    options: WordTaskOptions,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> LoadedBackbone:
    """With nothing to learn in it, all adapters are merged into the weights."""
    if options.train_backbone == "frozen":
        training_args = copy.copy(training_args)
        training_args.do_train = False
    config = load_config(model_args)
    if not is_encoder(config):
        return load_backbone_for_training(tokenizer, model_args, finetuning_args, training_args)

    # The host loads models with a language-model head only, which DeBERTa has not.
    dtype = model_args.compute_dtype if training_args.do_train else model_args.infer_dtype
    with weights_must_fit():
        model: Any = AutoModel.from_pretrained(
            model_args.model_name_or_path,
            dtype=dtype,
            trust_remote_code=model_args.trust_remote_code,
            **hub_options(model_args),
        )
    adapters = list(model_args.adapter_name_or_path or [])
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter, subfolder=model_args.adapter_folder or "").merge_and_unload()
    if training_args.do_train and options.train_backbone == "lora":
        model = get_peft_model(model, lora_config(finetuning_args))
    return LoadedBackbone(model, [model_args.model_name_or_path, *adapters][-1], adapters)


def lora_config(finetuning_args: FinetuningArguments) -> LoraConfig:
    """The host's LoRA options for a model that is no language model."""
    targets = finetuning_args.lora_target
    return LoraConfig(
        r=finetuning_args.lora_rank,
        lora_alpha=finetuning_args.lora_alpha,
        lora_dropout=finetuning_args.lora_dropout,
        target_modules="all-linear" if "all" in targets else targets,
        use_rslora=finetuning_args.use_rslora,
        use_dora=finetuning_args.use_dora,
    )
