"""From a recipe to a `TokenPredictor`: mask token, shift, the host's tokenizer and model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llamafactory.model import load_tokenizer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ..hparams.masked_tokens import MaskedTokenOptions
from ..model.families import Family
from ..model.mask_token import (
    ADDED_TEXT,
    MaskedTokenRecord,
    give_mean_row,
    learn_mask_embedding,
    load_mask_embedding,
)
from ..model.token_predictor import TokenPredictor
from .backbone import adapter_folders, attention_backend, hub_options, load_backbone_for_training, load_config
from .masked_tokens import MaskedTokenRequest, MaskedTokenSettings, resolve_masked_tokens


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


NO_TEMPLATE = "empty"  # the host's template that adds nothing


@dataclass(frozen=True)
class MaskedTokenSetup(MaskedTokenSettings):
    """The settings of a run, with the tokenizer, which the data need before the model is loaded."""

    tokenizer_module: dict[str, Any]
    config: PretrainedConfig
    folders: list[str]
    """Model and adapters that the recipe starts from."""
    hub: dict[str, Any]
    """How the hub is asked for those that are named by their place there."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer_module["tokenizer"]


def set_up_masked_tokens(
    options: MaskedTokenOptions, model_args: ModelArguments, otherwise: Literal["blank", "mask"]
) -> MaskedTokenSetup:
    """Load the tokenizer, and find out what counts for a recipe. `otherwise` is for families without a mask token.
    Diffusion (`ddm`, `ddm-sft`) needs to know the family or to be told; only it has blocks."""
    tokenizer_module = load_tokenizer(model_args)
    config = load_config(model_args)
    folders = [model_args.model_name_or_path, *adapter_folders(model_args)]
    hub = hub_options(model_args)
    settings = resolve_masked_tokens(
        MaskedTokenRequest(
            options.mask_token,
            options.shift,
            options.sliding_window,
            options.block_size if isinstance(options, DiffusionOptions) else 0,
        ),
        MaskedTokenRecord.find(folders, **hub),
        config,
        tokenizer_module["tokenizer"],
        otherwise=otherwise,
        needs_family=isinstance(options, DiffusionOptions),
    )
    return MaskedTokenSetup(
        **vars(settings), tokenizer_module=dict(tokenizer_module), config=config, folders=folders, hub=hub
    )


def choose_template(
    options: DiffusionTuningOptions, family: Family | None, asked: str | None, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """The name of the host's template that turns a conversation into a prompt; None: the tokenizer's chat template."""
    if options.ddm_format == "diffuseq":
        return NO_TEMPLATE
    if asked is not None:
        return asked
    if tokenizer.chat_template is None and (family is None or family.template is None):
        raise ValueError(
            "`template` is not set, and neither the tokenizer nor the model's family has one: name one, for instance "
            "`template: default`, or use `ddm_format: diffuseq`."
        )
    return None if tokenizer.chat_template is not None or family is None else family.template


def load_token_predictor(
    setup: MaskedTokenSetup,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> tuple[TokenPredictor, MaskedTokenRecord]:
    """Load the language model with an embedding for the mask token, and what its checkpoints will remember."""
    mask = setup.mask
    saved_embedding = load_mask_embedding(setup.folders, **setup.hub)
    if mask.id >= setup.config.vocab_size:
        mask = replace(mask, is_added=True)
    has_vector = mask.is_added and finetuning_args.finetuning_type in ("lora", "oft")
    if mask.is_added and not has_vector:
        check_that_a_row_learns(finetuning_args, training_args)
        model_args.resize_vocab = True

    loaded = load_backbone_for_training(setup.tokenizer, model_args, finetuning_args, training_args)
    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    if training_args.do_train:
        check_that_the_head_is_saved(base, setup.config.vocab_size)
    if mask.is_added:
        with whole_embeddings(base):
            if has_vector:
                vector = learn_mask_embedding(base, mask, saved_embedding)
                vector.requires_grad_(training_args.do_train)
            else:
                give_mean_row(base, mask)

    model = TokenPredictor(
        loaded.model,
        shift=setup.shift,
        sliding_window=setup.sliding_window,
        backend=attention_backend(model_args.flash_attn),
    )
    record = MaskedTokenRecord(
        mask_token=mask.text,
        mask_token_id=mask.id,
        shift=setup.shift,
        base_model=model_args.model_name_or_path,
        merged_adapters=tuple(loaded.merged_adapters),
        block_size=setup.block_size,
        sliding_window=setup.sliding_window,
    )
    return model, record


def check_that_a_row_learns(finetuning_args: FinetuningArguments, training_args: TrainingArguments) -> None:
    """Refuse to hide tokens behind an added token whose embedding stays noise."""
    if finetuning_args.finetuning_type == "freeze" and training_args.do_train:
        raise ValueError(
            f"`finetuning_type: freeze` does not train the embedding of the added token {ADDED_TEXT}: use `lora` or "
            "`full`, or a `mask_token` that the model knows, such as `blank`."
        )


def check_that_the_head_is_saved(model: PreTrainedModel, rows_before: int) -> None:
    """PEFT saves a larger vocabulary's embedding and head, unless the embedding has LoRA layers: then the new rows of
    a head that neither learns nor has LoRA layers would be lost."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_larger = embedding.weight.shape[0] > rows_before
    if not (is_larger and hasattr(embedding, "lora_embedding_A")) or hasattr(head, "base_layer"):
        return
    is_tied = head.weight is embedding.weight
    if not is_tied and not any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError(
            "`lora_target` with the embedding leaves the head's rows of the new tokens out of every checkpoint: train "
            "the head, too (`additional_target: lm_head`), or leave the embedding out of `lora_target`."
        )


@contextlib.contextmanager
def whole_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Under ZeRO-3 a rank holds a part of each matrix."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    matrices = {id(each): each for each in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    with deepspeed.zero.GatheredParameters(list(matrices.values()), modifier_rank=0):
        yield
