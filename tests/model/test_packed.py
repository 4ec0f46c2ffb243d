"""The packed forward equals one forward a text, and padding, for every family and back-end."""

from __future__ import annotations

import pytest
import torch

from attention_patch import patch_attention
from llamafactory_embed.model.packed import find_decoder, forward_packed, pack_texts, split_texts
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
    decoder = find_decoder(model)
    weights = torch.randn(len(texts), decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))

    with patch_attention(model, mode, backend=backend):
        alone = [decoder(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0] for text in texts]
        sum((state.mean(0) @ weight for state, weight in zip(alone, weights, strict=True)), torch.zeros(())).backward()
        expected = {
            name: parameter.grad.clone()
            for name, parameter in decoder.named_parameters()
            if name != "transformer.ff_out.weight"  # LLaDA's head, which lies in its decoder
        }
        decoder.zero_grad()

        packed: list[torch.Tensor] = [torch.empty(0)] * len(texts)
        for batch in pack_texts(texts, max_tokens=20):
            (hidden,) = forward_packed(decoder, batch)
            for index in batch.text_indices:
                packed[index] = split_texts(hidden, batch, len(texts))[index]
        sum(
            (state.mean(0) @ weight for state, weight in zip(packed, weights, strict=True)), torch.zeros(())
        ).backward()

    for index in range(len(texts)):
        torch.testing.assert_close(packed[index], alone[index], atol=1e-5, rtol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(decoder.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-4)


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
        torch.testing.assert_close(states[index], expected[index, : len(text)], atol=1e-5, rtol=1e-5)


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
