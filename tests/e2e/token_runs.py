"""Runs of the stages that predict masked tokens, on a tiny model, in this process or in each rank of torchrun.

`torchrun --nproc-per-node 2 -m tests.e2e.token_runs FOLDER` does what `contrastive_runs.py` does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.e2e.contrastive_runs import main


PROSE = Path(__file__).parents[2] / "data" / "prose"


def write_documents(folder: Path) -> Path:
    """A `dataset_dir`: documents to train on, others to evaluate on."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {}
    for name, file, count in (("prose", "train", 24), ("heldout", "heldout", 6), ("other", "heldout", 4)):
        lines = (PROSE / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        rows = [{"text": json.loads(line)["text"][: 60 + 37 * number]} for number, line in enumerate(lines)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def recipe(model: Path | str, data: Path | str, output_dir: Path | str, **options: Any) -> dict[str, Any]:
    """Three steps of documents; `batch_size` is that of all ranks together."""
    batch_size = options.pop("batch_size", 8)
    return {
        "model_name_or_path": str(model),
        "stage": "mntp",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "prose",
        "dataset_dir": str(data),
        "cutoff_len": 48,
        "output_dir": str(output_dir),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "per_device_train_batch_size": batch_size // int(os.environ.get("WORLD_SIZE", "1")),
        "max_steps": 3,
        # Steps as large as the gradient, so that an error of the gradient is one of the parameters; Adam divides by
        # the gradient's size and would make differences of rounding.
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), recipe)
