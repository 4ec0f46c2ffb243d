"""`stop_after_n_steps`: the first steps of a run, and an end like that of any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e import contrastive_runs, token_runs
from tests.e2e.contrastive_runs import RunResult, perform
from tests.e2e.tdro_runs import TDRO


STEPS, STOP = 7, 4
STAGES: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "tdro": {**TDRO, "tdro_measure": "loss", "tdro_scheduler": "cosine"},
    "mntp": {"stage": "mntp"},
    "ddm": {"stage": "ddm"},
}
SCHEDULE = {"max_steps": STEPS, "lr_scheduler_type": "cosine", "warmup_steps": 2}

Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "rows": contrastive_runs.write_data(folder / "rows"),
        "documents": token_runs.write_documents(folder / "documents"),
    }


@pytest.fixture
def run(tiny_llama: Path, data: dict[str, Path], tmp_path: Path) -> Run:
    """Train a stage into `tmp_path / name`."""

    def perform_recipe(name: str, stage: str = "contrastive", **options: Any) -> RunResult:
        reads_documents = stage in ("mntp", "ddm")
        make = token_runs.recipe if reads_documents else contrastive_runs.recipe
        folder = data["documents" if reads_documents else "rows"]
        return perform(make(tiny_llama, folder, tmp_path / name, **{**SCHEDULE, **STAGES[stage], **options}))

    return perform_recipe


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


def learning_rates(folder: Path) -> list[float]:
    return [entry["learning_rate"] for entry in state_of(folder)["log_history"] if "learning_rate" in entry]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_is_the_beginning_of_the_whole(stage: str, run: Run, tmp_path: Path) -> None:
    whole, stopped = run("whole", stage), run("stopped", stage, stop_after_n_steps=STOP)
    assert len(whole.losses) == STEPS
    assert stopped.losses == whole.losses[:STOP]
    rates = learning_rates(tmp_path / "whole")
    assert len(set(rates)) > STOP  # otherwise any schedule would do
    assert learning_rates(tmp_path / "stopped") == rates[:STOP]
    if stage == "tdro":
        histories = [
            (tmp_path / name / "task_weights.jsonl").read_text("utf-8").splitlines() for name in ("whole", "stopped")
        ]
        assert histories[1] == histories[0][:STOP]  # the step size of the weights is in it


def test_it_ends_with_an_evaluation_and_a_checkpoint(run: Run, tmp_path: Path) -> None:
    """At steps at which neither was due, as at the end of any run."""
    more = {
        "do_eval": True, "eval_dataset": "nouns_heldout", "eval_strategy": "steps", "eval_steps": 3,
        "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    run("stopped", **more, stop_after_n_steps=STOP)
    run("short", **more, max_steps=STOP)
    for folder in (tmp_path / "stopped", tmp_path / "short"):
        entries = state_of(folder)["log_history"]
        assert [entry["step"] for entry in entries if "eval_ndcg@10" in entry] == [3, STOP]
        assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-3", f"checkpoint-{STOP}"}
    final = load_file(tmp_path / "stopped" / "model.safetensors")
    last = load_file(tmp_path / "stopped" / f"checkpoint-{STOP}" / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in final.items())
    assert (tmp_path / "stopped" / "README.md").is_file()


def test_a_stopped_run_goes_on_as_the_whole(run: Run, tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 100, "optim": "adamw_torch", "learning_rate": 1e-3}
    whole = run("whole", **saved)
    run("stopped", **saved, stop_after_n_steps=STOP)
    checkpoint = str(tmp_path / "stopped" / f"checkpoint-{STOP}")
    later = run("later", **saved, stop_after_n_steps=STOP + 2, resume_from_checkpoint=checkpoint)
    assert later.losses == whole.losses[: STOP + 2]
    resumed = run("resumed", **saved, resume_from_checkpoint=checkpoint)
    assert resumed.losses == whole.losses
    assert resumed.parameters.keys() == whole.parameters.keys()
    assert all(torch.equal(resumed.parameters[name], value) for name, value in whole.parameters.items())
    with pytest.raises(ValueError, match="has reached step 4, and `stop_after_n_steps: 4` leaves nothing to train"):
        run("again", **saved, stop_after_n_steps=STOP, resume_from_checkpoint=checkpoint)


def test_a_run_that_is_shorter_ends_at_its_end(run: Run) -> None:
    assert len(run("short", stop_after_n_steps=100).losses) == STEPS
