"""Which token hides others, where a hidden token is predicted, and what it sees: one rule for every program.

The recipe decides; what it leaves open is as the checkpoint was trained (its `masked_tokens.json`), else as the
model's family was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from attention_patch import SlidingWindow

from ..model.families import Family, family_of, find_family
from ..model.mask_token import ADDED_TEXT, MaskedTokenRecord, MaskToken, find_mask_token


@dataclass(frozen=True)
class MaskedTokenRequest:
    """What a recipe or a command line asks for; None: left open."""

    mask_token: str | None = None
    shift: bool | None = None
    sliding_window: SlidingWindow = "keep"
    block_size: int | None = None
    """0: no blocks."""


@dataclass(frozen=True)
class MaskedTokenSettings:
    """What counts."""

    mask: MaskToken
    shift: bool
    sliding_window: SlidingWindow
    block_size: int | None
    """None: no blocks."""


def resolve_masked_tokens(
    request: MaskedTokenRequest | None,
    record: MaskedTokenRecord | None,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    otherwise: Literal["blank", "mask"] = "mask",
    needs_family: bool = True,
) -> MaskedTokenSettings:
    """The settings for a model with this configuration. `otherwise` is the token of a family that has none. With
    `needs_family`, an unknown family without a record is refused unless the request has both mask token and shift: a
    wrong guess would fail silently."""
    request = request or MaskedTokenRequest()
    family = find_family(config)
    is_complete = request.mask_token is not None and request.shift is not None
    if needs_family and record is None and not is_complete:
        family = family_of(config)
    block_size = request.block_size
    if block_size is None and record is not None:
        block_size = record.block_size
    return MaskedTokenSettings(
        mask=_resolve_mask(request, record, family, tokenizer, otherwise),
        shift=_resolve_shift(request, record, family),
        sliding_window=_resolve_window(request, record),
        block_size=block_size or None,
    )


def _resolve_mask(
    request: MaskedTokenRequest,
    record: MaskedTokenRecord | None,
    family: Family | None,
    tokenizer: PreTrainedTokenizerBase,
    otherwise: Literal["blank", "mask"],
) -> MaskToken:
    family_token = None if family is None else family.mask_token
    if request.mask_token is not None or record is None:
        return find_mask_token(tokenizer, request.mask_token, family_token, otherwise)
    # By its text: a tokenizer without it, such as that of an adapter's base model, gets it as it did in training.
    asked = "mask" if record.mask_token == ADDED_TEXT else record.mask_token
    mask = find_mask_token(tokenizer, asked, family_token)
    if mask.id != record.mask_token_id:
        raise ValueError(
            f"{tokenizer.name_or_path} is not the model that the checkpoint was trained on: its tokenizer gives the "
            f"mask token {mask.text!r} the id {mask.id}, not {record.mask_token_id}; name "
            f"{record.base_model or 'that model'}, and add the tokens that the training has added (`add_tokens`)."
        )
    return mask


def _resolve_shift(request: MaskedTokenRequest, record: MaskedTokenRecord | None, family: Family | None) -> bool:
    if request.shift is not None:
        return request.shift
    if record is not None:
        return record.shift
    return True if family is None else family.shift


def _resolve_window(request: MaskedTokenRequest, record: MaskedTokenRecord | None) -> SlidingWindow:
    """An ignored window stays ignored: full weights have lost it, and an adapter's must not come back."""
    if request.sliding_window == "ignore" or record is None:
        return request.sliding_window
    return record.sliding_window
