"""What is known of the families: of all that are tested, nothing that the host or transformers does not know."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from transformers import AutoConfig

from llamafactory_embed.hparams.option import choices
from llamafactory_embed.hparams.sampling import SamplingOptions
from llamafactory_embed.model.families import FAMILIES, family_of, find_family
from tests.tiny_models import FAMILIES as TINY_FAMILIES
from tests.tiny_models import tiny_config


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_every_tested_family_is_known(name: str) -> None:
    config = tiny_config(name)
    family = family_of(config)
    assert family is family_of(config.model_type)
    assert family.shift == (name != "llada")
    assert (family.mask_token is not None) == family.is_diffusion == (name in ("dream", "llada"))


def test_an_unknown_family_is_named() -> None:
    assert find_family("olmo2") is None
    with pytest.raises(ValueError, match="mask token and the shift of `olmo2` models"):
        family_of("olmo2")


def test_samplers_of_the_registry_exist() -> None:
    hints = typing.get_type_hints(SamplingOptions)
    for family in FAMILIES:
        assert family.sampler in choices(hints["sampling_algorithm"])


def test_page_lists_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text("utf-8")
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for row in re.findall(r"^\| [A-Z].*\|$", page, flags=re.MULTILINE)
    ]
    assert rows == [
        [
            family.name,
            ", ".join(f"`{model_type}`" for model_type in family.model_types),
            "added" if family.mask_token is None else f"`{family.mask_token}`",
            "yes" if family.shift else "no",
            "yes" if family.eos_padding else "no",
            "" if family.template is None else f"`{family.template}`",
            f"`{family.sampler}`" + (f", `block_length: {family.block_length}`" if family.block_length else ""),
        ]
        for family in FAMILIES
    ]


def test_model_types_of_the_registry_exist() -> None:
    for family in FAMILIES:
        for model_type in family.model_types:
            assert AutoConfig.for_model(model_type).model_type == model_type
