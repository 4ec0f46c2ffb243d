"""Quantization-aware training: what the loss is computed from, and how the ranges of a byte are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.model.quantization import rounded
from llamafactory_embed.train.embed.contrastive import quantizer as quantizer_module
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveBatch, ContrastiveCollator
from llamafactory_embed.train.embed.contrastive.objective import ContrastiveObjective
from llamafactory_embed.train.embed.contrastive.quantizer import KEPT, EmbeddingQuantizer
from tests.embedders import make_embedder, make_examples, make_rows, make_tokenizer


ROWS, SIZE = 5, 8


def random(seed: int = 0) -> Tensor:
    return torch.randn(3 * ROWS, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def batch() -> ContrastiveBatch:
    model = make_embedder()
    return ContrastiveCollator(make_tokenizer(model), max_tokens=1000)(make_examples(ROWS, 1))["batch"]


def make_quantizer(**options: Any) -> EmbeddingQuantizer:
    given = ContrastiveOptions(**options)
    found = EmbeddingQuantizer.of(given, given.matryoshka_dims)
    assert found is not None
    return found


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_the_loss_is_that_of_stored_embeddings(precision: Any, batch: ContrastiveBatch) -> None:
    """At each size of Matryoshka by the ranges of that size; a teacher's vectors are none here."""
    embeddings = random().requires_grad_()
    options = ContrastiveOptions(quantization_aware=precision, matryoshka_dims=[4, 8])
    quantizer = make_quantizer(quantization_aware=precision, matryoshka_dims=[4, 8])
    found = ContrastiveObjective(options, quantizer=quantizer)(embeddings, batch)
    expected = torch.zeros(())
    for size in (4, 8):
        served = F.normalize(embeddings.detach()[:, :size], dim=-1).numpy()
        assert quantizer.ranges is not None
        read = torch.from_numpy(rounded(served, precision, quantizer.ranges.of(size, unit_length=True)))
        expected = expected + ContrastiveObjective(ContrastiveOptions())(read, batch)
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(
        found, ContrastiveObjective(ContrastiveOptions(matryoshka_dims=[4, 8]))(embeddings, batch)
    )
    (gradient,) = torch.autograd.grad(found, embeddings)
    assert (gradient != 0).any(dim=1).all()


def test_ends_are_a_mean_of_the_extremes_that_forgets() -> None:
    quantizer = make_quantizer(quantization_aware="int8", normalize_embeddings=False)
    expected = torch.zeros(2, SIZE)
    for step in range(150):
        embeddings = (1 + step / 50) * random(step)
        quantizer.measure(make_rows(*embeddings.chunk(3)))
        extremes = torch.stack([embeddings.amin(dim=0), embeddings.amax(dim=0)])
        keep = step / (step + 1) if step < 99 else KEPT
        expected = keep * expected + (1 - keep) * extremes
    torch.testing.assert_close(quantizer.ends[SIZE], expected)
    assert quantizer.texts == 150 * 3 * ROWS


def test_ends_are_those_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rank is played, with embeddings twice as large."""
    monkeypatch.setattr(quantizer_module, "gather", lambda ends: torch.cat([ends, 2 * ends]))
    quantizer = make_quantizer(quantization_aware="int8", normalize_embeddings=False)
    quantizer.measure(make_rows(*random().chunk(3)))
    expected = 2 * torch.stack([random().amin(dim=0), random().amax(dim=0)])
    torch.testing.assert_close(quantizer.ends[SIZE], expected)


def test_a_resumed_training_measures_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, before, after = (make_quantizer(quantization_aware="int8", matryoshka_dims=[4]) for _ in range(3))
    batches = [make_rows(*random(step).chunk(3)) for step in range(4)]
    after.load(tmp_path, torch.device("cpu"))  # there is nothing before the first step
    assert after.ranges is None
    for number, rows in enumerate(batches):
        whole.measure(rows)
        if number < 2:
            before.measure(rows)
    before.save(tmp_path)
    after.load(tmp_path, torch.device("cpu"))
    for rows in batches[2:]:
        after.measure(rows)
    assert after.ranges == whole.ranges
    assert whole.ranges is not None
    assert set(whole.ranges.ranges) == {"4", "8"}  # the whole embedding is served, too


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"quantization_aware": "binary", "contrastive_loss": "repllama"}, "signs, which know no length"),
        ({"quantization_aware": "int8", "contrastive_loss": "repllama"}, "set `normalize_embeddings: false`"),
    ],
)
def test_losses_of_lengths_need_lengths(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ContrastiveOptions(**options)
    if options["quantization_aware"] == "int8":
        ContrastiveOptions(**options, normalize_embeddings=False)
