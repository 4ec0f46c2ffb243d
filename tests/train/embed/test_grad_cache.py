"""GradCache computes what the plain step computes, loss and gradients, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.model.packed import PackedBatch
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveCollator
from llamafactory_embed.train.embed.contrastive.objective import ContrastiveObjective
from llamafactory_embed.train.embed.contrastive.quantizer import EmbeddingQuantizer
from llamafactory_embed.train.embed.grad_cache import cached_backward, split_batches
from tests.embedders import make_embedder, make_examples, make_tokenizer


LOSSES: dict[str, dict[str, Any]] = {
    "info_nce": {},
    "both_directions": {"both_directions": True, "false_negative_margin": 0.1},
    "repllama": {"contrastive_loss": "repllama", "scale_by_dim": True},
    "kl_distillation": {"contrastive_loss": "kl_distillation"},
    "margin_distillation": {"contrastive_loss": "margin_distillation"},
    "cosent": {"contrastive_loss": "cosent"},
    "angle": {"contrastive_loss": "angle"},
    "matryoshka": {"matryoshka_dims": [8, 16, 32]},
    "quantized": {"matryoshka_dims": [8, 32], "quantization_aware": "binary"},
}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_cached_gradients_equal_plain_ones(loss: str, dropout: float) -> None:
    model = make_embedder("llama", lora_dropout=dropout, pooling="latent").train()
    options = ContrastiveOptions(**LOSSES[loss])
    objective = ContrastiveObjective(options, quantizer=EmbeddingQuantizer.of(options, options.matryoshka_dims))
    batch = ContrastiveCollator(make_tokenizer(model), max_tokens=60)(make_examples(6, 2, scores=True))["batch"]
    assert len(batch.packed) > 3

    torch.manual_seed(0)
    plain = objective(model(batch.packed), batch)
    plain.backward()
    expected = gradients(model)
    after_plain = torch.get_rng_state()

    torch.manual_seed(0)
    cached = cached_backward(
        model, batch.packed, lambda each: objective(each, batch), torch.Tensor.backward, device=model.device
    )
    torch.testing.assert_close(cached, plain.detach(), atol=1e-6, rtol=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), after_plain), (
        "training goes on with the random numbers of the plain step"
    )


def test_the_gradient_is_not_trivially_zero() -> None:
    model = make_embedder("llama", lora_dropout=0.0)
    objective = ContrastiveObjective(ContrastiveOptions())
    batch = ContrastiveCollator(make_tokenizer(model), max_tokens=60)(make_examples())["batch"]
    objective(model(batch.packed), batch).backward()
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients(model).values())


def test_accumulated_chunks_do_not_depend_on_the_chunk_size() -> None:
    model = make_embedder("qwen2")
    objective = ContrastiveObjective(ContrastiveOptions())
    found = []
    for max_tokens in (1, 80, 10_000):
        batch = ContrastiveCollator(make_tokenizer(model), max_tokens)(make_examples())["batch"]
        cached_backward(
            model, batch.packed, lambda each, batch=batch: objective(each, batch), torch.Tensor.backward,
            device=model.device,
        )  # fmt: skip
        found.append(gradients(model))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_largest_chunk_is_embedded_once_and_the_others_twice() -> None:
    """In the order of the plain step, which draws the same random numbers."""
    model = make_embedder("llama")
    objective = ContrastiveObjective(ContrastiveOptions())
    batch = ContrastiveCollator(make_tokenizer(model), max_tokens=60)(make_examples(6, 2))["batch"]
    embedded: list[tuple[int, bool]] = []

    def embed(chunks: Sequence[PackedBatch]) -> torch.Tensor:
        embedded.extend((len(chunk.token_ids), torch.is_grad_enabled()) for chunk in chunks)
        return model(chunks)

    cached_backward(
        embed, batch.packed, lambda each: objective(each, batch), torch.Tensor.backward, device=model.device
    )
    sizes = [len(chunk.token_ids) for chunk in batch.packed]
    kept = sizes.index(max(sizes))
    assert sizes[-1] < sizes[kept]
    once = [(size, number == kept) for number, size in enumerate(sizes)]
    again = [(size, True) for number, size in enumerate(sizes) if number != kept]
    assert embedded == once + again


def test_batches_split_further_embed_the_same() -> None:
    model = make_embedder("llama", skip_instruction=True)
    batch = ContrastiveCollator(make_tokenizer(model), max_tokens=200)(make_examples())["batch"]
    more = split_batches(batch.packed, 9)
    assert len(more) == 9 > len(batch.packed)
    with torch.no_grad():
        torch.testing.assert_close(model(more), model(batch.packed), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="texts for 99 forwards"):
        split_batches(batch.packed, 99)
