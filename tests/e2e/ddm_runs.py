"""Recipes of `stage: ddm` and `ddm-sft` on the tiny models and documents of `token_runs`, and sums to answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.contrastive_runs import LORA
from tests.e2e.token_runs import write_documents


SFT: dict[str, Any] = {
    "stage": "ddm-sft",
    "dataset": "sums",
    "template": "default",
    "eos_padding": "cutoff_len",
    "loss_norm": "sequence",
}

# Runs whose loss must not depend on how a step is cut into micro-batches and ranks.
RUNS: dict[str, dict[str, Any]] = {
    "documents": {},
    "several-forwards": {"max_tokens_per_batch": 64},
    "annealing": {"anneal_steps": 5},
    "blocks": {"block_size": 8},
    "original-norm": {"loss_norm": "masked", "noise_schedule": "cosine", "antithetic_time": False},
    "lora": {**LORA, "anneal_steps": 4, "loss_weight": "uniform"},
    "answers": SFT,
    "answers-diffuseq-lora": {**SFT, **LORA, "ddm_format": "diffuseq", "eos_padding": None},
}
DDM: dict[str, Any] = {"stage": "ddm"}


def write_data(folder: Path) -> Path:
    """Documents, and questions with answers of different lengths."""
    write_documents(folder)
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    words = ["red", "blue", "old", "new", "hot", "cold"]
    opposites = {word: words[number ^ 1] for number, word in enumerate(words)}
    rows = [{"instruction": word, "output": other} for word, other in opposites.items()]
    (folder / "opposites.json").write_text(json.dumps(rows), encoding="utf-8")
    info["opposites"] = {"file_name": "opposites.json", "columns": {"prompt": "instruction", "response": "output"}}
    numbers = ("nought", "one", "two", "three", "four", "five", "six")
    for name, start in (("sums", 0), ("sums_heldout", 3)):
        rows = [
            {"instruction": f"{first} and {second}", "output": " ".join(numbers[: first + second + 1])}
            for first in range(start, start + 3)
            for second in range(4)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        info[name] = {"file_name": f"{name}.json", "columns": {"prompt": "instruction", "response": "output"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder
