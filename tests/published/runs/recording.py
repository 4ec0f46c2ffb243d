"""Perform a recipe, and keep what a second implementation needs to take the same steps, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from llamafactory.train.tuner import run_exp
from torch import Tensor, nn
from transformers import TrainerCallback


DATA = Path(__file__).parents[3] / "data"
STEPS = 20

EXAMPLES = Path(__file__).parents[3] / "examples"

# Options of a published recipe that belong to its size and machine, or that end in no step.
LEFT_OUT = {
    "bf16", "flash_attn", "deepspeed", "ddp_timeout", "dataloader_num_workers", "max_samples", "tokenized_path",
    "mix_strategy", "interleave_probs", "streaming", "val_size", "save_steps", "save_total_limit", "plot_loss",
    "do_eval", "do_predict", "eval_dataset", "eval_strategy", "eval_steps", "per_device_eval_batch_size",
}  # fmt: skip

# What every run has in common: float32 on a CPU, every step logged.
COMMON: dict[str, Any] = {
    "do_train": True,
    "template": "default",
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "overwrite_output_dir": True,
}


@dataclass
class Recording:
    """One rank's view of a run."""

    output: Path
    micro_batches: list[tuple[list[Any], dict[str, Any]]] = field(default_factory=list)
    """Rows, and what the collator made of them, in the order of training."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """What learns, before the first step."""
    end: dict[str, Tensor] = field(default_factory=dict)
    """The same after the last."""
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    """Before clipping, as the Trainer logs them."""

    def steps(self, accumulation: int) -> list[list[tuple[list[Any], dict[str, Any]]]]:
        """The micro-batches of each step; the data loader may have prepared more of them than were used."""
        used = self.micro_batches[: len(self.losses) * accumulation]
        return [used[first : first + accumulation] for first in range(0, len(used), accumulation)]


class Recorder(TrainerCallback):
    """Listens at the data loader, and copies the log and what learns."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader = kwargs["train_dataloader"]
        collate: Callable[[Any], dict[str, Any]] = loader.collate_fn

        def listen(rows: Any) -> dict[str, Any]:
            inputs = collate(rows)
            self.recording.micro_batches.append((list(rows), inputs))
            return inputs

        loader.collate_fn = listen
        self.recording.start = learning_parameters(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logged = [entry for entry in state.log_history if "loss" in entry]
        self.recording.losses = [entry["loss"] for entry in logged]
        self.recording.learning_rates = [entry["learning_rate"] for entry in logged]
        self.recording.gradient_norms = [float(entry["grad_norm"]) for entry in logged]
        self.recording.end = learning_parameters(kwargs["model"])


def learning_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that learns, without the names of engines' wrappers."""
    return {
        name.removeprefix("module."): each.detach().clone()
        for name, each in model.named_parameters()
        if each.requires_grad
    }


def scaled_down(published: str, **scaled: Any) -> dict[str, Any]:
    """A recipe of `examples/`, with these options in place of the file's; one that is None is left out."""
    recipe = yaml.safe_load((EXAMPLES / f"{published}.yaml").read_text(encoding="utf-8"))
    kept = {name: value for name, value in recipe.items() if name not in LEFT_OUT}
    return {name: value for name, value in (kept | COMMON | scaled).items() if value is not None}


def record_run(recipe: dict[str, Any]) -> Recording:
    """Train by a recipe, in this process."""
    recording = Recording(Path(recipe["output_dir"]))
    torch.manual_seed(0)
    run_exp(dict(recipe), callbacks=[Recorder(recording)])
    assert len(recording.losses) == STEPS
    return recording


def write_retrieval_data(folder: Path) -> Path:
    """A `dataset_dir` with two retrieval tasks of bundled WordNet rows, each with three negatives, and plain texts."""
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {}
    for name, file in {"nouns": "gloss_to_noun", "words": "example_to_word"}.items():
        rows = read_lines(DATA / "wordnet" / f"{file}.jsonl")[:96]
        write_lines(folder / f"{name}.jsonl", rows)
        info[name] = {
            "file_name": f"{name}.jsonl",
            "formatting": "retrieval",
            "instruction": f"Find the {name}",
        }
    glosses = [{"text": row["query"]} for row in read_lines(DATA / "wordnet" / "gloss_to_verb.jsonl")[:96]]
    write_lines(folder / "texts.jsonl", glosses)
    info["texts"] = {"file_name": "texts.jsonl", "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
