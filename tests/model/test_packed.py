"""The packed forward equals one forward a text, and padding, for every family and back-end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from attention_patch import patch_attention
from llamafactory_embed.model.packed import find_decoder, forward_packed, pack_texts, split_texts
from tests.attention.models import skip_without_sdpa
from tests.rounding import additions_in_network, assert_equal_up_to_rounding
from tests.tiny_models import FAMILIES, VOCABULARY_SIZE, tiny_model


LENGTHS = (3, 9, 1, 9, 6, 3)


def random_texts(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator).tolist() for length in lengths]


def test_rows_respect_the_token_budget_and_keep_every_text() -> None:
    texts = random_texts(LENGTHS)
    batches = pack_texts(texts, max_tokens=12)
    assert sorted(index for batch in batches for index in batch.text_indices) == list(range(len(texts)))
    for batch in batches:
        assert sum(batch.lengths) == len(batch.token_ids) <= 12
        for index, tokens in zip(batch.text_indices, batch.token_ids.split(list(batch.lengths)), strict=True):
            assert tokens.tolist() == texts[index]


def test_a_text_longer_than_the_budget_gets_its_own_row() -> None:
    texts = random_texts((2, 20, 3))
    assert [batch.lengths for batch in pack_texts(texts, max_tokens=8)] == [(20,), (3, 2)]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="Text 1 of the batch has no tokens"):
        pack_texts([[5], []])


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate_forwards_and_gradients(family: str, backend: str, mode: str) -> None:
    texts = random_texts(LENGTHS)
    model = tiny_model(family)
    if backend == "sdpa":
        skip_without_sdpa(model)
    decoder = find_decoder(model)
    with patch_attention(model, mode, backend=backend):
        alone = [decoder(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0] for text in texts]
        expected = gradients(decoder, alone)
        packed: list[Tensor] = [torch.empty(0)] * len(texts)
        for batch in pack_texts(texts, max_tokens=20):
            (hidden,) = forward_packed(decoder, batch)
            for index in batch.text_indices:
                packed[index] = split_texts(hidden, batch, len(texts))[index]
        found = gradients(decoder, packed)

    forward_terms = additions_in_network(decoder.config, max(LENGTHS))
    for index in range(len(texts)):
        assert_equal_up_to_rounding(packed[index], alone[index], forward_terms, f"text {index}")
    backward_terms = additions_in_network(decoder.config, sum(LENGTHS), backward=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_equal_up_to_rounding(found[name], gradient, backward_terms, name)


def gradients(decoder: nn.Module, states: list[Tensor]) -> dict[str, Tensor]:
    """Of all parameters that the texts' states [n, d] reach, for a loss that weighs every text and dimension
    otherwise."""
    weights = torch.randn(len(states), states[0].shape[-1], generator=torch.Generator().manual_seed(1))
    decoder.zero_grad()
    torch.stack([state.mean(0) @ weight for state, weight in zip(states, weights, strict=True)]).sum().backward()
    return {name: each.grad.clone() for name, each in decoder.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_sees_its_neighbour_is_noticed(family: str, backend: str) -> None:
    """The comparison above fails, for states and for gradients, where two texts are laid out as one."""
    texts = random_texts(LENGTHS)
    model = tiny_model(family)
    if backend == "sdpa":
        skip_without_sdpa(model)
    decoder = find_decoder(model)
    (batch,) = pack_texts(texts)
    first, second, *others = batch.lengths
    joined = dataclasses.replace(batch, lengths=(first + second, *others))
    with patch_attention(model, backend=backend):
        (right,) = forward_packed(decoder, batch)
        expected = gradients(decoder, [right])
        (wrong,) = forward_packed(decoder, joined)
        found = gradients(decoder, [wrong])
    terms = additions_in_network(decoder.config, sum(LENGTHS), backward=True)
    assert_equal_up_to_rounding(wrong[first + second :], right[first + second :], terms)
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(wrong, right, terms)
    for name, gradient in expected.items():
        if "norm" not in name and "ln_" not in name and "bias" not in name:
            with pytest.raises(AssertionError):
                assert_equal_up_to_rounding(found[name], gradient, terms, name)


def test_packed_equals_the_padded_forward() -> None:
    texts = random_texts(LENGTHS)
    model = tiny_model("qwen2")
    decoder = find_decoder(model)
    longest = max(LENGTHS)
    padded = torch.tensor([text + [2] * (longest - len(text)) for text in texts])
    real = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with patch_attention(model, "bidirectional"), torch.no_grad():
        expected = decoder(input_ids=padded, attention_mask=real, use_cache=False).last_hidden_state
        (batch,) = pack_texts(texts)
        states = split_texts(forward_packed(decoder, batch)[0], batch, len(texts))
    for index, text in enumerate(texts):
        terms = additions_in_network(decoder.config, longest)
        assert_equal_up_to_rounding(states[index], expected[index, : len(text)], terms, f"text {index}")


def test_all_layers_end_with_the_last_hidden_state() -> None:
    model = tiny_model("llama")
    decoder = find_decoder(model)
    (batch,) = pack_texts(random_texts(LENGTHS))
    with patch_attention(model, "bidirectional"), torch.no_grad():
        layers = forward_packed(decoder, batch, all_layers=True)
        (last,) = forward_packed(decoder, batch)
    assert len(layers) == decoder.config.num_hidden_layers + 1
    torch.testing.assert_close(layers[-1], last)
    torch.testing.assert_close(layers[0], decoder.get_input_embeddings()(batch.token_ids))
