"""GradCache (`grad_cache_tokens`) trains as a plain step with the same forwards does, dropout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .contrastive_runs import DENSE, LATENT, LORA, perform, recipe, write_data
from .two_ranks import largest_difference


CHUNK = 64  # tokens: several forwards a step

RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full-reentrant": {"use_reentrant_gc": True},
    "full-not-reentrant": {"use_reentrant_gc": False},
    "lora-dropout": {**LORA, "lora_dropout": 0.3, "disable_gradient_checkpointing": True},
    "lora-dropout-reentrant": {**LORA, "lora_dropout": 0.3, "use_reentrant_gc": True},
    "lora-dropout-not-reentrant": {**LORA, "lora_dropout": 0.3, "use_reentrant_gc": False},
    "latent-accumulated": {**LORA, **LATENT, **DENSE, "lora_dropout": 0.3, "gradient_accumulation_steps": 2},
    "simcse-dropout": {"simcse_dropout": 0.3, "flash_attn": "disabled"},
    "both-directions-matryoshka": {"both_directions": True, "matryoshka_dims": [8, 32], "false_negative_margin": 0.1},
    "dense-matryoshka": {**DENSE, "matryoshka_dims": [8, 16]},
    "angle": {"contrastive_loss": "angle", "dataset": "scored", "num_negatives": 0},
}
HAVE_DROPOUT = [name for name, options in RUNS.items() if options.keys() & {"lora_dropout", "simcse_dropout"}]


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "model": tiny_llama,
        "data": write_data(folder / "data"),
        "output_dir": folder / "out",
        "overwrite_output_dir": True,
    }


@pytest.mark.parametrize("name", RUNS)
def test_cached_is_plain(name: str, settings: dict[str, Any]) -> None:
    options = RUNS[name]
    plain = perform(recipe(**settings, **options, max_tokens_per_batch=CHUNK))
    cached = perform(recipe(**settings, **options, grad_cache_tokens=CHUNK))
    assert cached.losses == pytest.approx(plain.losses, rel=1e-5)
    assert largest_difference(cached.gradients, plain.gradients) < 1e-5
    assert largest_difference(cached.parameters, plain.parameters) < 1e-5


@pytest.mark.parametrize("name", HAVE_DROPOUT)
def test_dropout_is_at_work(name: str, settings: dict[str, Any]) -> None:
    """Other chunks draw other random numbers: the runs above do not agree because dropout does nothing."""
    options = RUNS[name]
    chunks = perform(recipe(**settings, **options, grad_cache_tokens=CHUNK))
    others = perform(recipe(**settings, **options, grad_cache_tokens=2 * CHUNK))
    assert abs(chunks.losses[-1] - others.losses[-1]) > 1e-3
