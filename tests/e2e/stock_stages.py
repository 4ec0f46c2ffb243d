"""Run pt, sft, rm, dpo and kto of the host for a few steps in this process; write the losses to a JSON file."""

import json
import sys
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp


ALPACA = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(3, 19)]
PAIRS = [{**row, "chosen": row["output"], "rejected": "no"} for row in ALPACA]
LABELLED = [
    {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}],
     "label": bool(n % 2)} for n, row in enumerate(ALPACA)
]  # fmt: skip
DATA = {
    "text": ([{"text": row["output"]} for row in ALPACA], {"columns": {"prompt": "text"}}),
    "alpaca": (ALPACA, {}),
    "pairs": (
        PAIRS,
        {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}},
    ),
    "labelled": (
        LABELLED,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
    ),
}
STAGES = {"pt": "text", "sft": "alpaca", "rm": "pairs", "dpo": "pairs", "kto": "labelled"}


def write_data(folder: Path) -> None:
    info = {}
    for name, (rows, entry) in DATA.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        info[name] = {"file_name": f"{name}.json", **entry}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def run_stage(stage: str, model: str, folder: Path) -> list[float]:
    output_dir = folder / f"out-{stage}"
    recipe: dict[str, Any] = {
        "model_name_or_path": model,
        "stage": stage,
        "do_train": True,
        "finetuning_type": "full" if stage in ("pt", "sft") else "lora",
        "dataset": STAGES[stage],
        "dataset_dir": str(folder),
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(output_dir),
        "logging_steps": 1,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 1.0e-3,
        "use_cpu": True,
    }
    run_exp(recipe)
    history = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


if __name__ == "__main__":
    model, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True)
    write_data(folder)
    losses = {stage: run_stage(stage, model, folder) for stage in STAGES}
    (folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
