"""From a recipe to a `TokenPredictor`: mask token, shift, the host's tokenizer and model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llamafactory.model import load_tokenizer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..hparams.ddm import DiffusionOptions
from ..hparams.masked_tokens import MaskedTokenOptions
from ..model.families import family_of, find_family
from ..model.mask_token import (
    ADDED_TEXT,
    MaskedTokenRecord,
    MaskToken,
    find_mask_token,
    give_mean_row,
    learn_mask_embedding,
    load_mask_embedding,
)
from ..model.token_predictor import TokenPredictor
from .backbone import adapter_folders, attention_backend, hub_options, load_backbone_for_training, load_config


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


Options = TypeVar("Options", bound=DiffusionOptions)


@dataclass(frozen=True)
class MaskedTokenSetup:
    """Tokenizer, mask token and shift, which the data need before the model is loaded."""

    tokenizer_module: dict[str, Any]
    config: PretrainedConfig
    mask: MaskToken
    shift: bool
    sliding_window: Literal["keep", "ignore"]
    remembered: MaskedTokenRecord | None
    """What the checkpoint says that the recipe starts from."""
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
    """Load the tokenizer, and find the mask token and the shift: as the recipe says, else as the checkpoint that it
    starts from was trained, else as the model's family has them. `otherwise` is for families without a mask token. A
    window that was ignored stays ignored: full weights have lost it, and an adapter's must not come back."""
    tokenizer_module = load_tokenizer(model_args)
    config = load_config(model_args)
    folders = [model_args.model_name_or_path, *adapter_folders(model_args)]
    hub = hub_options(model_args)
    remembered = MaskedTokenRecord.find(folders, **hub)
    asked, shift = options.mask_token, options.shift
    if asked is None and remembered is not None:
        asked = "mask" if remembered.mask_token == ADDED_TEXT else remembered.mask_token
    if shift is None and remembered is not None:
        shift = remembered.shift

    family = find_family(config)
    family_token = None if family is None else family.mask_token
    mask = find_mask_token(tokenizer_module["tokenizer"], asked, family_token, otherwise)
    if shift is None:
        shift = True if family is None else family.shift
    sliding_window = options.sliding_window if remembered is None else remembered.sliding_window
    if options.sliding_window == "ignore":
        sliding_window = "ignore"
    return MaskedTokenSetup(dict(tokenizer_module), config, mask, shift, sliding_window, remembered, folders, hub)


def check_family(options: MaskedTokenOptions, setup: MaskedTokenSetup) -> None:
    """For a family that nobody knows, the recipe has to say what a guess would get silently wrong."""
    is_told = options.mask_token is not None and options.shift is not None
    if not is_told and setup.remembered is None:
        family_of(setup.config)


def load_token_predictor(
    setup: MaskedTokenSetup,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
    block_size: int | None = None,
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
        block_size=block_size,
        sliding_window=setup.sliding_window,
    )
    return model, record


def check_that_a_row_learns(finetuning_args: FinetuningArguments, training_args: TrainingArguments) -> None:
    """An added token that nobody trains would hide tokens behind noise."""
    if finetuning_args.finetuning_type == "freeze" and training_args.do_train:
        raise ValueError(
            f"`finetuning_type: freeze` does not train the embedding of the added token {ADDED_TEXT}: use `lora` or "
            "`full`, or a `mask_token` that the model knows, such as `blank`."
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


def settle_block_size(options: Options, remembered: MaskedTokenRecord | None) -> Options:
    """The same options with the size of blocks that counts: the recipe's, else that with which the checkpoint was
    trained; None where there are no blocks."""
    asked = options.block_size
    if asked is None and remembered is not None:
        asked = remembered.block_size
    return replace(options, block_size=asked or None)
