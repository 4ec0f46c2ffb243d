"""Frequencies that depend on a text's length: no text changes another's, in a row or afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import PackedBatch, forward_packed, pack_texts
from tests.embedders import make_config
from tests.tiny_models import tiny_model


ORIGINAL_LENGTH = 32
HALF_HEAD = 4
SHORT, LONG, LONGER = list(range(3, 15)), list(range(3, 63)), list(range(3, 93))
AT_THE_BORDER = list(range(3, 3 + ORIGINAL_LENGTH))

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * HALF_HEAD,
                "long_factor": [4.0] * HALF_HEAD,
                "original_max_position_embeddings": ORIGINAL_LENGTH,
                "factor": 4.0,
            },
            "original_max_position_embeddings": ORIGINAL_LENGTH,
            "max_position_embeddings": 128,
        },
    ),
    "dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
            "max_position_embeddings": ORIGINAL_LENGTH,
        },
    ),
}


def make_model(name: str) -> EmbeddingModel:
    family, overrides = MODELS[name]
    return EmbeddingModel(tiny_model(family, **overrides), make_config()).eval()


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_text_is_embedded_as_it_is_alone(name: str) -> None:
    texts = [SHORT, LONG, AT_THE_BORDER, LONGER, SHORT[:5]]
    alone = torch.cat([make_model(name)(pack_texts([text])) for text in texts])  # a new model for each
    model = make_model(name)
    torch.testing.assert_close(model(pack_texts(texts)), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(pack_texts(texts[::-1])).flip(0), alone, atol=1e-5, rtol=1e-5)
    after = torch.cat([model(pack_texts([text])) for text in texts[::-1]]).flip(0)
    torch.testing.assert_close(after, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_frequencies_of_transformers_are_used(name: str) -> None:
    """Hidden states are those of transformers for the text alone, which depend on the kind of frequencies."""
    family, overrides = MODELS[name]
    for text in (SHORT, LONG):
        theirs = tiny_model(family, **overrides)(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        causal = EmbeddingModel(
            tiny_model(family, **overrides), make_config(attention="causal", pooling="mean")
        ).eval()
        (ours,) = forward_packed(causal.decoder, pack_texts([SHORT[:7], text, LONGER])[0])
        lengths = [len(LONGER), len(text), 7]  # longest first
        torch.testing.assert_close(ours.split(lengths)[1], theirs, atol=1e-5, rtol=1e-5)
    default = tiny_model(family, max_position_embeddings=128)(torch.tensor([LONG]), output_hidden_states=True)
    assert not torch.allclose(default.hidden_states[-1][0], theirs, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_positions_decide_where_they_are_given(name: str) -> None:
    """In block diffusion a text stands twice in its row, at the same positions."""
    twice = [*SHORT, *SHORT, *SHORT]  # more tokens than the original length, but no position beyond it
    positions = torch.arange(len(SHORT)).repeat(3)
    batch = PackedBatch(torch.tensor(twice), (len(twice),), (0,), position_ids=positions)
    beside = PackedBatch(
        torch.tensor([*LONG, *twice]), (len(LONG), len(twice)), (0, 1),
        position_ids=torch.cat([torch.arange(len(LONG)), positions]),
    )  # fmt: skip
    model = make_model(name)
    (together,) = forward_packed(model.decoder, beside)
    (alone,) = forward_packed(model.decoder, batch)
    torch.testing.assert_close(together[len(LONG) :], alone, atol=1e-5, rtol=1e-5)
