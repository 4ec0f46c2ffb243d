"""Which sampler and which settings follow from a recipe, the host's options and the model's family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.hparams.sampling import SamplingOptions
from llamafactory_embed.model.families import FAMILIES, find_family
from llamafactory_embed.sampling.algorithms import ALGORITHMS
from llamafactory_embed.sampling.settings import SamplingSettings


HOST = {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "repetition_penalty": 1.0}


def settings(model_type: str | None = None, host: dict[str, Any] | None = None, **options: Any) -> SamplingSettings:
    generating = SimpleNamespace(**HOST | {"do_sample": True} | (host or {}))
    family = None if model_type is None else find_family(model_type)
    return SamplingSettings.from_options(SamplingOptions(**options), generating, family=family, seed=5)


def test_every_family_has_a_sampler_that_exists() -> None:
    assert {family.sampler for family in FAMILIES} <= set(ALGORITHMS)


def test_the_family_decides_what_a_recipe_leaves_open() -> None:
    assert (settings("llada").algorithm, settings("llada").block_length) == ("low_confidence", 32)
    assert settings("llada", block_length=8).block_length == 8
    assert settings("Dream").algorithm == "entropy"
    assert settings("gpt2").algorithm == "topk_low_score"
    named = settings("llada", sampling_algorithm="entropy")
    assert (named.algorithm, named.block_length) == ("entropy", None)
    assert settings().algorithm == "low_confidence"


def test_parallel_decoding_takes_an_algorithm_with_a_probability() -> None:
    assert settings("Dream", confidence_threshold=0.9).algorithm == "low_confidence"
    assert settings("gpt2", confidence_factor=1.0).algorithm == "low_confidence"
    assert settings("gpt2", confidence_factor=1.0, sampling_algorithm="topk_margin").algorithm == "topk_margin"


def test_the_hosts_options_are_read() -> None:
    read = settings(host={"max_new_tokens": 7, "repetition_penalty": 1.2})
    assert (read.max_new_tokens, read.temperature, read.top_p, read.top_k) == (7, 0.95, 0.7, 50)
    assert (read.repetition_penalty, read.seed) == (1.2, 5)
    greedy = settings(host={"do_sample": False})
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0.0, 1.0, 0)


def test_a_request_changes_what_it_names() -> None:
    read = settings().with_generation({"temperature": 0.2, "top_p": None, "max_new_tokens": 3})
    assert (read.temperature, read.top_p, read.max_new_tokens) == (0.2, 0.7, 3)
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1"):
        settings().with_generation({"max_new_tokens": 0})
