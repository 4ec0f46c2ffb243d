"""A packed forward with the head at labelled positions equals text by text with all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attention_patch import annealed_mask
from llamafactory_embed.model.token_predictor import (
    NO_LABEL,
    CorruptedText,
    TokenBatch,
    TokenPredictor,
    can_be_predicted,
    pack_corrupted_texts,
)
from tests.tiny_models import VOCABULARY_SIZE, tiny_model


LENGTHS = (9, 4, 1, 9, 6)


def draw_texts(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Texts, labels at a third of their tokens, and weights."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator) for length in LENGTHS]
    hidden = [torch.rand(length, generator=generator) < 0.4 for length in LENGTHS]
    labels = [
        torch.where(chosen, torch.randint(VOCABULARY_SIZE, (length,), generator=generator), NO_LABEL)
        for chosen, length in zip(hidden, LENGTHS, strict=True)
    ]
    return texts, labels, [torch.rand(length, generator=generator) for length in LENGTHS]


def pack(
    texts: list[Tensor], labels: list[Tensor], weights: list[Tensor] | None = None, max_tokens: int | None = None
) -> list[TokenBatch]:
    parts = zip(texts, labels, weights or [None] * len(texts), strict=True)
    return pack_corrupted_texts([CorruptedText(*part) for part in parts], max_tokens)


def one_by_one(model: TokenPredictor, texts: list[Tensor], labels: list[Tensor], shift: bool) -> list[Tensor]:
    """The losses of each text, from the logits of all its tokens."""
    found = []
    for text, wanted in zip(texts, labels, strict=True):
        logits = model.backbone(input_ids=text[None]).logits[0]
        if shift:
            logits, wanted = logits[:-1], wanted[1:]
        chosen = wanted != NO_LABEL
        found.append(cross_entropy(logits[chosen], wanted[chosen], reduction="none"))
    return found


def in_order(batches: list[TokenBatch], losses: Tensor, shift: bool) -> list[Tensor]:
    """The losses of packed texts, one tensor a text, in the order they were given in."""
    counts = [
        int(part.sum())
        for batch in batches
        for part in torch.isin(torch.arange(len(batch.labels)), batch.scored(shift)).split(list(batch.packed.lengths))
    ]
    given = [index for batch in batches for index in batch.packed.text_indices]
    return [part for _, part in sorted(zip(given, losses.split(counts), strict=True), key=lambda pair: pair[0])]


@pytest.mark.parametrize("max_tokens", [None, 10], ids=["one forward", "several forwards"])
@pytest.mark.parametrize("shift", [True, False], ids=["shift", "no shift"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3"])
def test_packed_equals_one_by_one(family: str, shift: bool, max_tokens: int | None) -> None:
    model = TokenPredictor(tiny_model(family), shift=shift)
    texts, labels, _ = draw_texts()
    batches = pack(texts, labels, max_tokens=max_tokens)
    assert (len(batches) > 1) == (max_tokens is not None)
    found = in_order(batches, model(batches).losses, shift)
    expected = one_by_one(model, texts, labels, shift)
    assert sum(map(len, expected)) > 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_gradients_equal_one_by_one() -> None:
    model = TokenPredictor(tiny_model("llama"), shift=True)
    texts, labels, weights = draw_texts()
    batches = pack(texts, labels, weights, max_tokens=10)
    model(batches).loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    parts = zip(one_by_one(model, texts, labels, True), labels, weights, strict=True)
    sum((losses * weight[1:][label[1:] != NO_LABEL]).sum() for losses, label, weight in parts).backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_head_runs_again_where_an_engine_must_see_it(recompute: bool) -> None:
    model = TokenPredictor(tiny_model("llama"), shift=True)
    model.recompute_logits = recompute
    calls: list[int] = []
    model.backbone.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    model(pack(*draw_texts())).loss.backward()
    assert len(calls) == 1 + recompute


def test_shift_never_crosses_a_border() -> None:
    assert can_be_predicted((3, 1, 2), shift=True).tolist() == [False, True, True, False, False, True]
    assert can_be_predicted((3, 1, 2), shift=False).all()
    texts = [torch.arange(3, 6), torch.arange(6, 9)]
    first_tokens = [torch.tensor([5, NO_LABEL, NO_LABEL])] * 2
    assert len(TokenPredictor(tiny_model("llama"), shift=True)(pack(texts, first_tokens)).losses) == 0
    assert len(TokenPredictor(tiny_model("llama"), shift=False)(pack(texts, first_tokens)).losses) == 2


@pytest.mark.parametrize("max_tokens", [None, 10], ids=["one forward", "several forwards"])
def test_without_labels_every_parameter_gets_a_gradient_of_zero(max_tokens: int | None) -> None:
    model = TokenPredictor(tiny_model("llama"), shift=True)
    texts, labels, _ = draw_texts()
    nothing = [torch.full_like(each, NO_LABEL) for each in labels]
    scores = model(pack(texts, nothing, max_tokens=max_tokens))
    assert len(scores.losses) == 0
    assert scores.loss == 0
    scores.loss.backward()
    for name, each in model.named_parameters():
        assert each.grad is not None, name
        assert not each.grad.any()


def test_both_directions_and_texts_apart() -> None:
    """A text's last token moves its first prediction, and no other text's."""
    model = TokenPredictor(tiny_model("llama"), shift=True)
    texts = [torch.arange(3, 9), torch.arange(9, 15)]
    labels = [torch.tensor([NO_LABEL, 7, *[NO_LABEL] * 4])] * 2
    before = model(pack(texts, labels)).losses
    changed = [torch.cat([texts[0][:-1], torch.tensor([100])]), texts[1]]
    after = model(pack(changed, labels)).losses
    assert abs(float(after[0] - before[0])) > 1e-3
    torch.testing.assert_close(after[1], before[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_masks_of_attention(backend: str) -> None:
    """A mask that allows what lies behind only makes the model causal, each text by itself."""
    texts, labels, _ = draw_texts()
    (batch,) = pack(texts, labels)
    longest = max(LENGTHS)
    causal = annealed_mask(longest, 0.0)
    annealed = TokenPredictor(tiny_model("llama"), shift=True, backend=backend)
    found = annealed([TokenBatch(batch.packed, batch.labels, allowed=causal)]).losses
    expected = TokenPredictor(tiny_model("llama"), shift=True, attention="causal", backend=backend)([batch]).losses
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - annealed([batch]).losses).abs().max() > 1e-3


def test_a_model_without_a_head() -> None:
    batch = pack([torch.arange(3, 9)], [torch.arange(3, 9)])
    with pytest.raises(ValueError, match="LlamaModel has no language-model head"):
        TokenPredictor(tiny_model("llama").base_model, shift=True)(batch)
