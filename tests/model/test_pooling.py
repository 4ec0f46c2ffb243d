"""Poolings of packed texts equal plain loops over the texts, forward and backward."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.model.latent_pooling import LARGEST_LENGTH_RATIO, LatentPooler, group_by_length
from llamafactory_embed.model.packed import mean_states
from llamafactory_embed.model.pooling import LatentPooling, Pooling, TokenPooling, build_pooler, needs_eos


SIZE = 12
LAYERS = 3
LENGTHS = [5, 1, 9, 5, 2, 30, 6, 1]


def random_states(lengths: list[int] = LENGTHS, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), SIZE, generator=generator, dtype=dtype) for _ in range(LAYERS + 1)]


def random_pooled_tokens(lengths: list[int] = LENGTHS) -> Tensor:
    """Scattered tokens; the third text has none."""
    generator = torch.Generator().manual_seed(1)
    pooled = torch.rand(sum(lengths), generator=generator) < 0.6
    pooled[sum(lengths[:2]) : sum(lengths[:3])] = False
    return pooled


def make_pooler(pooling: Pooling, causal: bool = False) -> torch.nn.Module:
    torch.manual_seed(2)
    pooler = build_pooler(
        pooling, hidden_size=SIZE, num_layers=LAYERS, causal=causal, latents=7, heads=2, head_size=5
    ).double()
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.normal_()
    return pooler


def pool_one_text(hidden: Tensor, counted: Tensor, pooling: TokenPooling) -> Tensor:
    """The definition, for one text [length, d]."""
    if pooling == "bos":
        return hidden[0]
    if pooling in ("last", "eos"):
        return hidden[-1]
    pooled = hidden[counted] if counted.any() else hidden
    if pooling in ("mean", "mask"):
        return pooled.mean(0)
    weights = torch.arange(1, len(pooled) + 1, dtype=hidden.dtype)
    return (pooled * weights[:, None]).sum(0) / weights.sum()


@pytest.mark.parametrize("pooling", get_args(TokenPooling))
@pytest.mark.parametrize("with_mask", [False, True])
def test_token_poolings_equal_a_loop(pooling: TokenPooling, with_mask: bool) -> None:
    states = [state.requires_grad_() for state in random_states()]
    counted = random_pooled_tokens() if with_mask else torch.ones(sum(LENGTHS), dtype=torch.bool)
    pooled = make_pooler(pooling)(states, LENGTHS, counted if with_mask else None)
    expected = torch.stack(
        [
            pool_one_text(hidden, mask, pooling)
            for hidden, mask in zip(states[-1].split(LENGTHS), counted.split(LENGTHS), strict=True)
        ]
    )
    torch.testing.assert_close(pooled, expected)
    direction = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3), dtype=pooled.dtype)
    torch.testing.assert_close(
        torch.autograd.grad((pooled * direction).sum(), states[-1])[0],
        torch.autograd.grad((expected * direction).sum(), states[-1])[0],
    )


def read_one_text(pooler: LatentPooler, keys: Tensor) -> Tensor:
    """The formula of the paper for one text's keys [K, d], head by head."""
    query = pooler.to_query(pooler.latent_norm(pooler.latents)).chunk(pooler.heads, dim=-1)
    projected_keys, projected_values = pooler.to_key_value(pooler.key_norm(keys)).chunk(2, dim=-1)
    heads = [
        torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v
        for q, k, v in zip(
            query, projected_keys.chunk(pooler.heads, -1), projected_values.chunk(pooler.heads, -1), strict=True
        )
    ]
    attended = pooler.to_output(torch.cat(heads, dim=-1)) + pooler.latents
    values, gates = pooler.feedforward_in(pooler.feedforward_norm(attended)).chunk(2, dim=-1)
    return (pooler.feedforward_out(values * F.gelu(gates)) + attended).mean(0)


@pytest.mark.parametrize("pooling", get_args(LatentPooling))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_latent_poolings_equal_a_loop(pooling: Pooling, causal: bool, with_mask: bool) -> None:
    pooler = make_pooler(pooling, causal)
    assert isinstance(pooler, LatentPooler)
    states = [state.requires_grad_() for state in random_states()]
    counted = random_pooled_tokens() if with_mask else torch.ones(sum(LENGTHS), dtype=torch.bool)
    pooled = pooler(states, LENGTHS, counted if with_mask else None)

    expected = []
    for *layers, mask in zip(*(state.split(LENGTHS) for state in states), counted.split(LENGTHS), strict=True):
        tokens = mask if mask.any() else torch.ones_like(mask)
        if pooling == "latent":
            keys = layers[-1][-1:] if causal else layers[-1][tokens]
        else:
            vectors = [layer[-1] if causal else layer[tokens].mean(0) for layer in layers[1:]]
            keys = torch.stack(vectors) + pooler.layer_embeddings
        expected.append(read_one_text(pooler, keys))
    torch.testing.assert_close(pooled, torch.stack(expected))

    inputs = [*pooler.parameters(), states[-1]]
    for actual, wanted in zip(
        torch.autograd.grad(pooled.square().sum(), inputs),
        torch.autograd.grad(torch.stack(expected).square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_an_embedding_does_not_depend_on_its_neighbours(pooling: Pooling) -> None:
    pooler = make_pooler(pooling)
    states = random_states()
    together = pooler(states, torch.tensor(LENGTHS))
    for text, pieces in enumerate(zip(*(state.split(LENGTHS) for state in states), strict=True)):
        torch.testing.assert_close(pooler(list(pieces), [LENGTHS[text]])[0], together[text])


@pytest.mark.parametrize("growing", [False, True])
def test_gradients_of_means(growing: bool) -> None:
    hidden = random_states()[0].requires_grad_()
    pooled = random_pooled_tokens()
    assert torch.autograd.gradcheck(lambda states: mean_states(states, LENGTHS, pooled, growing=growing), [hidden])


@pytest.mark.parametrize("pooling", get_args(TokenPooling))
def test_half_precision_is_pooled_in_float32(pooling: TokenPooling) -> None:
    """A mean over many tokens in bfloat16 would lose what the last ones add."""
    lengths = [3000, 700]
    states = [state.bfloat16() for state in random_states(lengths)]
    pooled = make_pooler(pooling)(states, lengths)
    exact = make_pooler(pooling)([state.double() for state in states], lengths)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), exact, atol=1e-6, rtol=1e-5)


def test_groups_hold_every_text_once_and_little_padding() -> None:
    lengths = torch.randint(1, 400, (300,), generator=torch.Generator().manual_seed(4)).tolist()
    groups = group_by_length(lengths)
    assert sorted(text for group in groups for text in group) == list(range(len(lengths)))
    assert all(lengths[group[-1]] <= LARGEST_LENGTH_RATIO * lengths[group[0]] for group in groups)
    assert len(groups) < 30


def test_a_pooler_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="was built for a model of 3 layers, this one has 2"):
        make_pooler("multi_layer_latent")(random_states()[:-1], LENGTHS)


def test_build_pooler_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"`pooling` must be one of mean, .*multi_layer_latent, not 'max'"):
        build_pooler("max", hidden_size=SIZE, num_layers=LAYERS, causal=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`latent_heads` is 5, which does not divide the hidden size 12"):
        build_pooler("latent", hidden_size=SIZE, num_layers=LAYERS, causal=True, heads=5)


@pytest.mark.parametrize("pooling", get_args(LatentPooling))
@pytest.mark.parametrize("std", [0.02, 1.0])
def test_latents_start_with_the_standard_deviation_asked_for(pooling: LatentPooling, std: float) -> None:
    """0.02 is the default; all other weights start alike, whatever it is."""
    sizes = {"hidden_size": 48, "num_layers": LAYERS, "causal": True, "latents": 400, "heads": 4}
    torch.manual_seed(5)
    default = build_pooler(pooling, **sizes).state_dict()  # type: ignore[arg-type]
    torch.manual_seed(5)
    weights = build_pooler(pooling, latents_init_std=std, **sizes).state_dict()  # type: ignore[arg-type]
    assert float(weights["latents"].std()) == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(weights.pop("latents"), default.pop("latents") * (std / 0.02))
    assert all(torch.equal(value, default[name]) for name, value in weights.items())


def test_eos_is_needed_where_the_last_token_speaks_for_the_text() -> None:
    assert {pooling for pooling in get_args(Pooling) if needs_eos(pooling, causal=False)} == {"last", "eos"}
    assert {pooling for pooling in get_args(Pooling) if needs_eos(pooling, causal=True)} == {
        "last",
        "eos",
        "latent",
        "multi_layer_latent",
    }
