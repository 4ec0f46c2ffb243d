"""Recipe over checkpoint record over family: what counts for mask token, shift, window and blocks."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from llamafactory_embed.loading.masked_tokens import MaskedTokenRequest, resolve_masked_tokens
from llamafactory_embed.model.mask_token import MaskedTokenRecord, MaskToken
from tests.tiny_models import VOCABULARY_SIZE, tiny_config, tiny_tokenizer


ADDED = VOCABULARY_SIZE  # the id of a token that is added
RECORD = MaskedTokenRecord("<mask>", ADDED, shift=False, block_size=4, sliding_window="ignore", base_model="the/base")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return copy.deepcopy(tiny_tokenizer())


def test_the_family_decides_where_nothing_else_does(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = resolve_masked_tokens(None, None, tiny_config("llama"), tokenizer)
    assert settings.mask == MaskToken("<mask>", ADDED, is_added=True)
    assert (settings.shift, settings.sliding_window, settings.block_size) == (True, "keep", None)
    other = copy.deepcopy(tiny_tokenizer())
    other.add_special_tokens({"mask_token": "<|mdm_mask|>"})
    settings = resolve_masked_tokens(None, None, tiny_config("llada"), other)
    assert (settings.mask.text, settings.mask.id, settings.shift) == ("<|mdm_mask|>", ADDED, False)


def test_the_record_goes_before_the_family(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = resolve_masked_tokens(None, RECORD, tiny_config("llama"), tokenizer)
    assert settings.mask == MaskToken("<mask>", ADDED, is_added=True)  # as in training, on the base's tokenizer
    assert (settings.shift, settings.sliding_window, settings.block_size) == (False, "ignore", 4)
    again = resolve_masked_tokens(None, RECORD, tiny_config("llama"), tokenizer)
    assert again.mask == MaskToken("<mask>", ADDED)


def test_the_request_goes_before_the_record(tokenizer: PreTrainedTokenizerBase) -> None:
    request = MaskedTokenRequest("eos", True, "keep", 0)
    settings = resolve_masked_tokens(request, RECORD, tiny_config("llama"), tokenizer)
    assert (settings.mask.id, settings.shift, settings.block_size) == (tokenizer.eos_token_id, True, None)
    assert settings.sliding_window == "ignore"  # what training ignored does not come back
    blocks = resolve_masked_tokens(MaskedTokenRequest(block_size=8), RECORD, tiny_config("llama"), tokenizer)
    assert blocks.block_size == 8
    window = resolve_masked_tokens(MaskedTokenRequest(sliding_window="ignore"), None, tiny_config("llama"), tokenizer)
    assert window.sliding_window == "ignore"


def test_an_unknown_family_has_to_be_told(tokenizer: PreTrainedTokenizerBase) -> None:
    config = tiny_config("llama")
    config.model_type = "unheard_of"
    for request in (None, MaskedTokenRequest("eos"), MaskedTokenRequest(shift=False)):
        with pytest.raises(ValueError, match="unheard_of"):
            resolve_masked_tokens(request, None, config, tokenizer)
    told = resolve_masked_tokens(MaskedTokenRequest("eos", False), None, config, tokenizer)
    assert (told.mask.id, told.shift) == (tokenizer.eos_token_id, False)
    assert resolve_masked_tokens(None, RECORD, config, tokenizer).shift is False
    guessed = resolve_masked_tokens(None, None, config, tokenizer, otherwise="blank", needs_family=False)
    assert guessed.shift is True


def test_another_tokenizer_than_in_training_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """With other added tokens the mask would have another id, and hide nothing."""
    tokenizer.add_tokens(["<q>"])
    with pytest.raises(ValueError, match=rf"the id {ADDED + 1}, not {ADDED}; name the/base, and add the tokens"):
        resolve_masked_tokens(None, RECORD, tiny_config("llama"), tokenizer)
