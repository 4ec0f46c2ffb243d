"""Compiled layers: what packed rows give without a compiler, by programs that do not depend on lengths."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from attention_patch import patch_attention
from llamafactory_embed.model.compiled import compile_layers
from llamafactory_embed.model.packed import PackedBatch, forward_packed, pack_texts
from tests.compiler import needs_compiler
from tests.rounding import additions_in_network, assert_equal_up_to_rounding
from tests.tiny_models import tiny_model


# Several lengths in a row, one length, one text: each of them is laid out in another way for attention.
ROWS = ([5, 9, 9, 3, 1, 4], [7] * 4, [33], [20, 3], [12, 12, 50], [6] * 9, [2, 1])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rows_of(model: Any, rows: Sequence[Sequence[int]] = ROWS) -> list[PackedBatch]:
    draw = random.Random(0)
    vocabulary = model.config.vocab_size
    return [
        pack_texts([[draw.randrange(vocabulary) for _ in range(length)] for length in lengths])[0] for lengths in rows
    ]


def states_and_gradients(model: Any, batch: PackedBatch) -> dict[str, Tensor]:
    model.zero_grad()
    (states,) = forward_packed(model, batch)
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return gradients | {"states": states.detach()}


def decoder(**overrides: Any) -> Any:
    model = tiny_model("llama", **overrides).base_model
    patch_attention(model, backend="sdpa")
    return model


def test_no_length_is_compiled_anew() -> None:
    """Two layers share their programs; rows of every layout and length run them, with gradients and without."""
    plain = decoder(num_hidden_layers=2)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")
    graphs = []
    for batch in rows_of(plain):
        expected, found = states_and_gradients(plain, batch), states_and_gradients(compiled, batch)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0]] * len(ROWS)
    assert graphs[0] > 0
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@needs_compiler
def test_programs_compute_what_the_layers_do() -> None:
    """The code generator's own: states and gradients of rows of two layouts."""
    plain = decoder(num_hidden_layers=1)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled)
    for batch in rows_of(plain, ROWS[:2]):
        terms = additions_in_network(plain.config, len(batch.token_ids), backward=True)
        expected, found = states_and_gradients(plain, batch), states_and_gradients(compiled, batch)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_equal_up_to_rounding(found[name], expected[name], terms, name)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="`torch_compile: true`: Linear has no layers to compile"):
        compile_layers(nn.Linear(2, 2))
