"""The chunked head equals the model's own logits and their cross entropy, for every family and whatever learns."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llamafactory_embed.model import token_loss
from llamafactory_embed.model.packed import find_decoder
from llamafactory_embed.model.token_loss import LanguageModelHead, score_tokens, summed_cross_entropy
from tests.tiny_models import FAMILIES, HIDDEN_SIZE, VOCABULARY_SIZE, tiny_model


TOKENS = 23
CHUNK = 5

# What learns of the head, besides the hidden states.
HEADS = {
    "frozen": {},
    "lora": {"target_modules": ["q_proj", "lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "all weights": {},
}


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN_SIZE, generator=generator, requires_grad=True)
    return hidden, torch.randint(VOCABULARY_SIZE, (TOKENS,), generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_head_gives_the_logits_of_the_model(family: str) -> None:
    model = tiny_model(family)
    if model.config.to_dict().get("final_logit_softcapping"):
        model.config.final_logit_softcapping = 2.0  # small enough to be felt
    ids = torch.arange(3, 20)[None]
    (hidden,) = find_decoder(model)(input_ids=ids).last_hidden_state
    expected = model(input_ids=ids).logits[0]
    torch.testing.assert_close(LanguageModelHead.of_model(model)(hidden), expected, atol=1e-5, rtol=1e-5)


def test_scaled_logits() -> None:
    """Cohere multiplies its logits, Granite divides them."""
    module = nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE)
    hidden, _ = draw()
    torch.testing.assert_close(LanguageModelHead(module, VOCABULARY_SIZE, 0.5)(hidden), 0.5 * module(hidden))


@pytest.mark.parametrize("recompute", [False, True], ids=["at once", "again"])
@pytest.mark.parametrize("trainable", HEADS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_losses_and_gradients(family: str, trainable: str, recompute: bool) -> None:
    torch.manual_seed(0)
    model = tiny_model(family, tie_word_embeddings=False)
    model.requires_grad_(trainable == "all weights")
    learned = (
        model
        if trainable in ("frozen", "all weights")
        else get_peft_model(model, LoraConfig(init_lora_weights=False, **HEADS[trainable]))
    )
    head = LanguageModelHead.of_model(learned)
    parameters = head.learned
    assert bool(parameters) == (trainable != "frozen")

    weights = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    hidden, labels = draw()
    total, found = summed_cross_entropy(hidden, head, labels, weights, chunk=CHUNK, recompute=recompute)
    gradients = torch.autograd.grad(3 * total, [hidden, *parameters])
    whole = cross_entropy(head(hidden).float(), labels, reduction="none")
    expected = torch.autograd.grad(3 * (whole * weights).sum(), [hidden, *parameters])
    torch.testing.assert_close(total, (whole * weights).sum())
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)
    assert not found.requires_grad
    for one, other in zip(gradients, expected, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_second_backward_pass_is_refused() -> None:
    """The first one has scaled the gradients in place."""
    head = LanguageModelHead.of_model(tiny_model("llama"))
    hidden, labels = draw()
    total, _ = summed_cross_entropy(hidden, head, labels, torch.ones(TOKENS))
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_tied_head_learns_on_both_ways() -> None:
    model = tiny_model("gemma")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids, labels = torch.arange(3, 20)[None], torch.arange(4, 21)
    head = LanguageModelHead.of_model(model)
    hidden = model.base_model(input_ids=ids).last_hidden_state[0]
    summed_cross_entropy(hidden, head, labels, torch.ones(17), chunk=CHUNK)[0].backward()
    found = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    cross_entropy(model(input_ids=ids).logits[0], labels, reduction="sum").backward()
    torch.testing.assert_close(found, model.get_input_embeddings().weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, TOKENS])
def test_scores(count: int) -> None:
    head = LanguageModelHead.of_model(tiny_model("llama"))
    hidden, labels = draw()
    hidden, labels = hidden[:count], labels[:count].clone()
    labels[::2] = head(hidden).argmax(dim=-1)[::2]
    losses, correct = score_tokens(hidden, head, labels, chunk=CHUNK)
    with torch.no_grad():
        total, expected = summed_cross_entropy(hidden, head, labels, torch.full((count,), 2.0), chunk=CHUNK)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(total, 2 * losses.sum())
    assert torch.equal(correct, head(hidden).argmax(dim=-1) == labels)
    assert correct[::2].all()


class WatchedHead(nn.Linear):
    """Notes how many positions it is asked for at a time."""

    def __init__(self) -> None:
        super().__init__(HIDDEN_SIZE, VOCABULARY_SIZE)
        self.rows: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


@pytest.mark.parametrize("recompute", [False, True], ids=["at once", "again"])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_logits_are_kept(is_frozen: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in one piece, nor from the forward to the backward pass. The head is asked once, unless it has to be
    seen in the backward pass, too."""
    monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", VOCABULARY_SIZE * CHUNK)
    module = WatchedHead().requires_grad_(not is_frozen)
    hidden, labels = draw()
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: kept.append(tuple(each.shape)) or each, lambda each: each
    ):
        total, _ = summed_cross_entropy(
            hidden, LanguageModelHead(module, VOCABULARY_SIZE), labels, torch.ones(TOKENS), recompute=recompute
        )
    if not recompute:  # what was kept for the gradients that are taken at once is gone
        kept = [tuple(each.shape) for each in total.grad_fn.saved_tensors]
        assert kept == [(TOKENS, HIDDEN_SIZE), *(tuple(each.shape) for each in module.parameters() if not is_frozen)]
    assert kept
    assert max(module.rows) == CHUNK
    assert all(VOCABULARY_SIZE not in shape for shape in kept if TOKENS in shape or CHUNK in shape)
    total.backward()
    assert max(module.rows) == CHUNK
    assert sum(module.rows) == TOKENS * (2 if recompute else 1)
    assert hidden.grad.any()
