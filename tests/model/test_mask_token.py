"""Which token hides others, and where its embedding is when the model does not know it yet."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llamafactory_embed.model.mask_token import (
    ADDED_TEXT,
    EMBEDDING_NAME,
    MaskedTokenRecord,
    MaskToken,
    find_mask_embedding,
    find_mask_token,
    give_mean_row,
    learn_mask_embedding,
    load_mask_embedding,
    mean_embedding,
    save_mask_embedding,
    write_mask_row,
)
from tests.tiny_models import HIDDEN_SIZE, VOCABULARY_SIZE, tiny_model, tiny_tokenizer


MASK = MaskToken(ADDED_TEXT, VOCABULARY_SIZE, is_added=True)  # its id lies behind the embedding matrix


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return copy.deepcopy(tiny_tokenizer())


# ---------------------------------------------------------------------------------------------------------------
# The token
# ---------------------------------------------------------------------------------------------------------------


def test_tokens_that_are_there(tokenizer: PreTrainedTokenizerFast) -> None:
    before = len(tokenizer)
    assert find_mask_token(tokenizer, "blank") == MaskToken("_", tokenizer.convert_tokens_to_ids("_"))
    assert find_mask_token(tokenizer, "eos") == MaskToken("</s>", tokenizer.eos_token_id)
    assert find_mask_token(tokenizer, "e") == MaskToken("e", tokenizer.convert_tokens_to_ids("e"))
    assert find_mask_token(tokenizer, " ").id == tokenizer.encode(" ", add_special_tokens=False)[0]  # by its text
    assert len(tokenizer) == before


def test_an_added_token(tokenizer: PreTrainedTokenizerFast) -> None:
    before = len(tokenizer)
    found = find_mask_token(tokenizer, "mask")
    assert found == MaskToken(ADDED_TEXT, before, is_added=True)
    assert tokenizer.encode(f"a{ADDED_TEXT}b", add_special_tokens=False).count(found.id) == 1
    assert find_mask_token(tokenizer, "mask") == MaskToken(ADDED_TEXT, before)  # from now on it is there


def test_what_is_taken_when_nothing_is_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    assert find_mask_token(tokenizer, None, otherwise="blank").text == "_"
    assert find_mask_token(tokenizer, None, family_token="<pad>").text == "<pad>"
    assert find_mask_token(tokenizer, None, otherwise="mask").is_added
    assert find_mask_token(tokenizer, None, otherwise="blank").text == ADDED_TEXT  # the tokenizer's own goes first


@pytest.mark.parametrize("asked", ["several tokens", "zzzz"])
def test_a_text_of_several_tokens(asked: str, tokenizer: PreTrainedTokenizerFast) -> None:
    count = len(tokenizer.encode(asked, add_special_tokens=False))
    assert count > 1
    with pytest.raises(ValueError, match=rf"`mask_token: {asked}` is {count} tokens .*`mask_token: mask`"):
        find_mask_token(tokenizer, asked)


def test_eos_of_a_tokenizer_without(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="`mask_token: eos` needs a tokenizer with an EOS token"):
        find_mask_token(tokenizer, "eos")


# ---------------------------------------------------------------------------------------------------------------
# Its embedding
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "gpt2"])
def test_a_vector_of_its_own_begins_as_the_mean(family: str) -> None:
    """It gives what the same model with the mean as a row of its matrix gives, and other tokens stay what they are."""
    ids = torch.tensor([[5, MASK.id, 7, MASK.id]])
    expected = tiny_model(family)
    expected.resize_token_embeddings(VOCABULARY_SIZE + 3)
    give_mean_row(expected, MASK)
    model = tiny_model(family)
    vector = learn_mask_embedding(model, MASK)
    assert vector.requires_grad
    states = [each.base_model(input_ids=ids).last_hidden_state for each in (model, expected)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
    states[0].sum().backward()
    assert vector.grad.any()
    plain = torch.tensor([[5, 7]])
    torch.testing.assert_close(
        model(input_ids=plain).logits, tiny_model(family)(input_ids=plain).logits, atol=1e-6, rtol=0
    )


def test_mean_row_of_a_head_of_its_own() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    matrices = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    model.resize_token_embeddings(VOCABULARY_SIZE + 64)
    give_mean_row(model, MASK)
    for matrix, before in zip((model.get_input_embeddings(), model.get_output_embeddings()), matrices, strict=True):
        torch.testing.assert_close(matrix.weight[MASK.id], before.mean(dim=0), atol=1e-6, rtol=1e-5)
        assert torch.equal(matrix.weight[: MASK.id], before)


def test_mean_of_known_tokens() -> None:
    embedding = torch.nn.Embedding(10_000, HIDDEN_SIZE)  # more than one part
    torch.testing.assert_close(mean_embedding(embedding), embedding.weight.mean(dim=0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mean_embedding(embedding, 9), embedding.weight[:9].mean(dim=0), atol=1e-6, rtol=1e-4)


def test_the_adapter_beside_it_stays_an_ordinary_one(tmp_path: Path) -> None:
    """It loads on the unchanged base model, and the vector loads beside it."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    vector = learn_mask_embedding(base, MASK)
    with torch.no_grad():
        vector.normal_()
    model.save_pretrained(tmp_path / "adapter")
    save_mask_embedding(tmp_path / "adapter", find_mask_embedding(model))
    assert (tmp_path / "adapter" / EMBEDDING_NAME).stat().st_size < 1000
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 50_000  # no embedding matrix

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again.load_adapter(str(tmp_path / "adapter"))
    plain = torch.tensor([[5, 7]])
    torch.testing.assert_close(again(input_ids=plain).logits, model(input_ids=plain).logits)
    learn_mask_embedding(again, MASK, load_mask_embedding([tmp_path / "base", tmp_path / "adapter"]))
    masked = torch.tensor([[5, MASK.id, 7]])
    torch.testing.assert_close(again(input_ids=masked).logits, model(input_ids=masked).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_of_one_piece(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The vector written into the matrix gives the same states, with families that scale their embeddings too."""
    token = find_mask_token(tokenizer, "mask")
    model = tiny_model(family)
    vector = learn_mask_embedding(model, token)
    with torch.no_grad():
        vector.normal_()
    ids = torch.tensor([[5, token.id, 7]])
    expected = model.base_model(input_ids=ids).last_hidden_state
    merged = tiny_model(family)
    write_mask_row(merged, tokenizer, vector, token.id)
    torch.testing.assert_close(merged.base_model(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert merged.config.vocab_size >= len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_behind_the_token_stay_what_they_are(tied: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    """Embedding matrices have rows to spare, and those behind may belong to tokens that a chat template added."""
    token = find_mask_token(tokenizer, "mask")
    model = tiny_model("llama", vocab_size=token.id + 8, tie_word_embeddings=tied)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        matrices[0][token.id] = 0  # what no text ever used may be anything
    before = [each.clone() for each in matrices]
    vector = torch.randn(HIDDEN_SIZE)
    write_mask_row(model, tokenizer, vector, token.id)
    others = [row for row in range(token.id + 8) if row != token.id]
    for matrix, old in zip(matrices, before, strict=True):
        assert torch.equal(matrix[others], old[others])
    torch.testing.assert_close(matrices[0][token.id], vector)
    if not tied:
        torch.testing.assert_close(matrices[1][token.id], before[1][: token.id].mean(dim=0))


def test_record(tmp_path: Path) -> None:
    record = MaskedTokenRecord(
        "_", 65, shift=True, base_model="base", merged_adapters=("first",), block_size=8, sliding_window="ignore"
    )
    (tmp_path / "older").mkdir()
    MaskedTokenRecord("<mask>", 7, shift=False).save(tmp_path / "older")
    record.save(tmp_path)
    assert MaskedTokenRecord.find([tmp_path / "older", tmp_path]) == record
    assert MaskedTokenRecord.find([tmp_path, tmp_path / "older"]).mask_token_id == 7
    assert MaskedTokenRecord.find([tmp_path / "nowhere"]) is None
