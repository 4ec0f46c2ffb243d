"""The five designs of Pooling-and-Attention on given hidden states, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llamafactory_embed.loading.attention_pool import PARAMETERS
from llamafactory_embed.model.latent_pooling import LatentPooler
from llamafactory_embed.model.pooling import Pooling, build_pooler
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare


# design → its pooling, whether attention is causal, and whose parameters it has
DESIGNS: dict[str, tuple[Pooling, bool, str | None]] = {
    "model1": ("last", True, None),
    "model2": ("latent", True, "last_layer_pooler"),
    "model3": ("multi_layer_latent", True, "multi_layer_pooler"),
    "model4": ("latent", False, "last_layer_pooler"),
    "model5": ("multi_layer_latent", False, "multi_layer_pooler"),
}


def make_parameter(description: dict[str, Any]) -> torch.Tensor:
    """The rule of the case: a sine of the parameter's number and the element's place, then scale and shift."""
    shape = description["shape"]
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    sine = torch.sin(0.9 * (description["index"] + 1) + 0.37 * j + 0.0011 * j * j)
    *shift, scale = description["kind"].removesuffix(" s").split(": ")[-1].split(" + ")
    return (float(scale) * sine + (float(shift[0]) if shift else 0.0)).view(shape)


def load_design(case: GoldenCase, design: str) -> torch.nn.Module:
    pooling, causal, parameters = DESIGNS[design]
    config = case.data["config"]
    pooler = build_pooler(
        pooling,
        hidden_size=config["hidden"],
        num_layers=config["layers_used"],
        causal=causal,
        latents=config["latents"],
        heads=config["heads"],
        head_size=config["dim_head"],
    )
    pooler.double()
    if parameters is not None:
        state = {}
        for description in case.data["parameters"][parameters]:
            value = make_parameter(description)
            first_values = case.data["parameters"].get("first_values", {}).get(parameters, {})
            wanted = torch.tensor(first_values.get(description["name"], []), dtype=torch.float64)
            torch.testing.assert_close(value.flatten()[: len(wanted)], wanted, rtol=0, atol=1e-12)
            state[PARAMETERS[description["name"]]] = value
        if "layer_embeddings" in state:
            state["layer_embeddings"] = state["layer_embeddings"][: config["layers_used"]]
        pooler.load_state_dict(state)
    return pooler


def pack(case: GoldenCase, mask_name: str | None) -> tuple[list[torch.Tensor], list[int]]:
    """The real tokens of the padded hidden states, end to end, one tensor a layer, and each row's length."""
    layers = torch.tensor(case.data["inputs"]["hidden_states"], dtype=torch.float64)  # [1 + L, B, T, d]
    mask = torch.ones(layers.shape[1:3], dtype=torch.bool)
    if mask_name is not None:
        mask = torch.tensor(case.data["inputs"][mask_name]).bool()
    return [layer[mask] for layer in layers], mask.sum(1).tolist()


@golden_cases("pa/poolers")
@pytest.mark.parametrize(
    ("expected", "mask_name"),
    [
        ("model1_left_padded", "attention_mask_left_padded"),
        ("model1_right_padded", "attention_mask_right_padded_for_model1"),
        ("model2_left_padded", "attention_mask_left_padded"),
        ("model3_left_padded", "attention_mask_left_padded"),
        ("model4_no_padding", None),
        ("model4_masked", "attention_mask_left_padded"),
        ("model5_left_padded", "attention_mask_left_padded"),
        ("model5_no_padding", None),
    ],
)
def test_design(case: GoldenCase, expected: str, mask_name: str | None) -> None:
    if expected not in case.data["expected"]:
        nothing_to_compare(expected)
    pooler = load_design(case, expected.split("_")[0])
    states, lengths = pack(case, mask_name)
    embeddings = F.normalize(pooler(states if pooler.uses_all_layers else states[-1:], lengths), dim=-1)
    tolerance = case.data["tolerance"]
    wanted = torch.tensor(case.data["expected"][expected], dtype=torch.float64)
    torch.testing.assert_close(embeddings, wanted, atol=tolerance["atol"], rtol=tolerance["rtol"])


@golden_cases("pa/poolers")
def test_single_key_gives_query_no_gradient(case: GoldenCase) -> None:
    """Design 2 as published reads one key, so attention is constant; the loss still reaches every other parameter."""
    pooler = load_design(case, "model2")
    assert isinstance(pooler, LatentPooler)
    states, lengths = pack(case, "attention_mask_left_padded")
    pooler(states[-1:], lengths).square().sum().backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in pooler.named_parameters()}  # type: ignore[union-attr]
    constant = {"to_query.weight", "latent_norm.weight", "latent_norm.bias"}
    assert all((norm < 1e-9) == (name in constant) for name, norm in norms.items()), norms
