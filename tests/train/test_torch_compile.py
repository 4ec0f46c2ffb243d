"""`torch_compile: true` gives the losses and gradients of a run without, in every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch._dynamo.utils import counters

from llamafactory_embed.train.engines import compile_for_engines
from tests.compiler import needs_compiler
from tests.e2e import contrastive_runs, ddm_runs, token_runs
from tests.e2e.contrastive_runs import LORA, RunResult, perform
from tests.e2e.two_ranks import largest_difference, run_on_two_ranks
from tests.rounding import additions_in_network, assert_equal_up_to_rounding
from tests.tiny_models import tiny_model
from tests.train.test_gradient_checkpointing import STAGES


Run = Callable[..., RunResult]

# Traces and takes gradients as for the code generator, which would take minutes.
TRACED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
ADDITIONS = additions_in_network(tiny_model("llama").config, tokens=128, backward=True)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"rows": contrastive_runs.write_data(folder / "rows"), "texts": ddm_runs.write_data(folder / "texts")}


@pytest.fixture
def run(tiny_llama: Path, data: dict[str, Path], tmp_path: Path) -> Run:
    """Two steps, with dropout where there are adapters."""

    def perform_recipe(name: str, **options: Any) -> RunResult:
        of_texts = name.startswith(("mntp", "ddm"))
        recipe = token_runs.recipe if of_texts else contrastive_runs.recipe
        options = {"max_steps": 2, "batch_size": 4, "overwrite_output_dir": True} | STAGES[name] | options
        if "lora_rank" in options:
            options["lora_dropout"] = 0.2
        return perform(recipe(tiny_llama, data["texts" if of_texts else "rows"], tmp_path / "run", **options))

    return perform_recipe


def assert_equal_losses(found: RunResult, plain: RunResult) -> None:
    assert found.losses == pytest.approx(plain.losses, rel=1e-5)
    assert any(bool(gradient.any()) for gradient in plain.gradients.values())


def test_cached_and_checkpointed_with_dropout(run: Run, tmp_path: Path) -> None:
    """Chunks and layers that run twice draw the same numbers; the checkpoint has the names of a run without."""
    options: dict[str, Any] = {**LORA, "grad_cache_tokens": 64, "save_strategy": "steps", "save_steps": 2}
    options |= {"disable_gradient_checkpointing": True, "gradient_checkpointing": True}
    plain = run("contrastive", **options)
    saved = names_in(tmp_path / "run" / "checkpoint-2")
    counters.clear()
    found = run("contrastive", **options, **TRACED)
    assert counters["stats"]["unique_graphs"] > 0
    assert_equal_losses(found, plain)
    assert largest_difference(found.gradients, plain.gradients) < 1e-5
    assert names_in(tmp_path / "run" / "checkpoint-2") == saved
    assert saved
    assert not any("_orig_mod" in name for name in saved)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        return set(weights.keys())


@needs_compiler
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_every_stage(name: str, checkpointing: bool, run: Run) -> None:
    """Up to rounding: compiled sums are added in another order."""
    options = {"disable_gradient_checkpointing": True, "gradient_checkpointing": checkpointing}
    found, plain = run(name, **options, torch_compile=True), run(name, **options)
    assert_equal_losses(found, plain)
    assert found.gradients.keys() == plain.gradients.keys()
    for parameter, gradient in plain.gradients.items():
        assert_equal_up_to_rounding(found.gradients[parameter], gradient, ADDITIONS, parameter)


@needs_compiler
@pytest.mark.process
def test_two_ranks(tiny_llama: Path, data: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": str(tiny_llama), "data": str(data["rows"]), "max_steps": 2}
    runs = {"plain": {}, "compiled": TRACED, "cached": {"grad_cache_tokens": 64, **TRACED}}
    results = run_on_two_ranks(tmp_path / "runs", settings, runs)
    for name in ("compiled", "cached"):
        assert results[name].losses == pytest.approx(results["plain"].losses, rel=1e-5), name
        assert results[name].rank_difference == 0.0


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_engines_with_hooks_in_the_layers_are_refused(engine: str) -> None:
    trainer: Any = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, args=None)
    setattr(trainer, engine, True)
    model: Any = None
    with pytest.raises(ValueError, match="`torch_compile: true` is not supported under DeepSpeed and FSDP"):
        compile_for_engines(trainer, model)
