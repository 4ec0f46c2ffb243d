"""`stage: contrastive` in one process: interrupted + resumed = uninterrupted; the best checkpoint comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.reader import load_tasks
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler

from .contrastive_runs import DENSE, LATENT, LORA, OBJECTIVES, RunResult, perform, recipe, write_data


TEXTS = ["the study of stars", "a young horse", "to run away", "an instrument with strings", "blue"]

# Everything that has a state: random numbers of dropout, momenta of the optimizer, the schedule, the pooler, and (from
# the second epoch on) the sampler.
STATEFUL = {
    **LORA, **LATENT, **DENSE, "lora_dropout": 0.2, "optim": "adamw_torch", "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "save_strategy": "steps",
}  # fmt: skip

Train = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(tiny_llama: Path, data: Path, tmp_path: Path) -> Train:
    """Train into `tmp_path/<name>` by a recipe with these options."""

    def run(name: str, **options: Any) -> RunResult:
        return perform(recipe(tiny_llama, data, tmp_path / name, **options))

    return run


RESUMED_RUNS: dict[str, dict[str, Any]] = {
    "first-epoch": {"max_steps": 6, "save_steps": 4},
    "between-epochs": {"max_steps": 20, "save_steps": 16},
    "second-epoch": {"max_steps": 22, "save_steps": 19},
    "workers": {"max_steps": 22, "save_steps": 19, "dataloader_num_workers": 2},
    "accumulation": {"max_steps": 12, "save_steps": 10, "gradient_accumulation_steps": 2},
    "cached": {"max_steps": 22, "save_steps": 19, "grad_cache_tokens": 64},
    "objectives": {**OBJECTIVES, "max_steps": 12, "save_steps": 7, "grad_cache_tokens": 64},
    "epochs-of-different-lengths": {
        "max_steps": 32, "save_steps": 28, "dataset": "repeating", "gradient_accumulation_steps": 2, "batch_size": 4
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED_RUNS)
def test_interrupted_and_resumed_is_uninterrupted(name: str, train: Train, tmp_path: Path) -> None:
    options = STATEFUL | RESUMED_RUNS[name]
    whole = train("whole", **options)
    (checkpoint,) = (tmp_path / "whole").glob(f"checkpoint-{options['save_steps']}")
    resumed = train("resumed", **options, resume_from_checkpoint=str(checkpoint))

    assert len(whole.losses) == options["max_steps"]
    assert resumed.losses == whole.losses  # those before the checkpoint are in its log
    assert resumed.parameters.keys() == whole.parameters.keys()
    for parameter, value in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[parameter], value, err_msg=parameter)
    np.testing.assert_array_equal(*(Encoder(tmp_path / run).encode(TEXTS) for run in ("whole", "resumed")))


def test_an_epoch_shorter_than_the_first_is_there(data: Path) -> None:
    """The last of the runs above would prove nothing without one before its checkpoint."""
    dataset = RetrievalDataset(load_tasks(["repeating"], str(data)), num_negatives=1, seed=42)
    sampler = GlobalBatchSampler(dataset, batch_size=4)
    lengths = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        lengths.append(len(sampler))
    assert min(lengths) < lengths[0]


@pytest.mark.parametrize("adaptation", [{}, {**LORA, **LATENT}], ids=["full", "lora-latent"])
def test_the_best_checkpoint_comes_back_when_training_stops_early(
    adaptation: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    patience = 3
    result = train(
        "run",
        **adaptation,
        eval_dataset="nouns_heldout",
        do_eval=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="ndcg@10",
        early_stopping_steps=patience,
        max_steps=60,
    )
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    found = [metrics["eval_ndcg@10"] for metrics in result.metrics]
    best_step = 1 + found.index(max(found))
    assert state["global_step"] == best_step + patience < 60
    assert state["best_metric"] == max(found)
    assert Path(state["best_model_checkpoint"]).name == f"checkpoint-{best_step}"

    def embed(folder: str) -> np.ndarray:
        return Encoder(tmp_path / "run" / folder).encode(TEXTS)

    np.testing.assert_array_equal(embed("."), embed(f"checkpoint-{best_step}"))
    assert np.abs(embed(".") - embed(f"checkpoint-{state['global_step']}")).max() > 1e-3
    evaluated = json.loads((tmp_path / "run" / "eval_results.json").read_text(encoding="utf-8"))
    assert evaluated["eval_ndcg@10"] == pytest.approx(max(found), abs=1e-6)
