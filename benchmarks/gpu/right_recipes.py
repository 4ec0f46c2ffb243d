"""Recipes as users run them, through LLaMA-Factory: training on the GPU, an interruption, and what follows it.

Needs the host. Where it is not installed but `WHEELS` names a folder of wheels, an environment beside that of the
machine is made from them, without a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..inputs import ModelSize, TripletSizes, make_triplets, save_model
from ..processes import ROOT
from ..training import write_dataset
from .record import NotRunHereError
from .steps import Bench


STEPS = 6
SAME_LOSS = 2e-2  # of a run in bfloat16 whose kernels add in any order


def measure(bench: Bench) -> None:
    """`stage: contrastive` in all ways, interrupted and resumed; `stage: ddm`."""
    python = interpreter(bench.folder)
    model = save_model(bench.folder / "model", ModelSize(2, 64, 96, 4, 2, 400, 96))
    recipes = Recipes(bench, python, model)
    recipes.write_data()
    bench.record.attempt("resume", recipes.resume)
    if bench.small:
        return  # the same run in a second way would show nothing new
    bench.record.attempt("GradCache", lambda: recipes.learns("GradCache", grad_cache_tokens=64))
    bench.record.attempt("LoRA", lambda: recipes.learns("LoRA", finetuning_type="lora", learning_rate=1e-2))
    bench.record.attempt("Liger", lambda: recipes.learns("Liger", enable_liger_kernel=True))
    bench.record.attempt(
        "QLoRA",
        lambda: recipes.learns(
            "QLoRA", finetuning_type="lora", learning_rate=1e-2, quantization_bit=4, quantization_method="bnb"
        ),
    )


def interpreter(folder: Path) -> str:
    """A Python that has the host."""
    if find_spec("llamafactory") is not None:
        return sys.executable
    wheels = os.environ.get("WHEELS")
    if not wheels:
        raise NotRunHereError("LLaMA-Factory is not installed, and WHEELS names no folder of wheels")
    home = folder / "environment"
    # The machine's own torch and transformers stay visible: wheels bring what is missing.
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(home)], check=True)
    python = str(home / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, *sorted(map(str, Path(wheels).glob("*.whl")))], check=True)
    return python


class Recipes:
    """Runs of one small model on one set of triplets."""

    def __init__(self, bench: Bench, python: str, model: Path) -> None:
        self.bench, self.python, self.model = bench, python, model
        self.data = bench.folder / "data"

    def write_data(self) -> None:
        """Triplets of the bundled prose."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        write_dataset(self.data, make_triplets(tokenizer, TripletSizes(rows=4, batches=STEPS, mean=14, fill=0.4)))

    def resume(self) -> None:
        """Half of the steps, and the rest from the checkpoint: the losses of the run that was not interrupted."""
        whole = self.train("whole")
        self.train("halved", save_steps=STEPS // 2, save_strategy="steps")
        checkpoint = self.bench.folder / "halved" / f"checkpoint-{STEPS // 2}"
        resumed = self.train("resumed", resume_from_checkpoint=str(checkpoint))
        differences = [abs(a - b) for a, b in zip(whole, resumed, strict=True)]
        self.bench.record.error("resumed: losses", max(differences), SAME_LOSS)
        self.bench.record.check("contrastive learns", whole[-1] < whole[0], f"{whole[0]:.4f} to {whole[-1]:.4f}")

    def learns(self, what: str, **options: Any) -> None:
        """One run whose loss falls."""
        losses = self.train(what.lower(), **options)
        self.bench.record.check(f"{what} learns", min(losses[1:]) < losses[0], str([round(x, 4) for x in losses]))

    def train(self, name: str, **options: Any) -> list[float]:
        """Run a recipe with the host's own command; the losses of its steps."""
        output = self.bench.folder / name
        on_cpu = {"use_cpu": True} if self.bench.device == "cpu" else {"bf16": True}
        recipe = {
            "model_name_or_path": str(self.model),
            "stage": "contrastive",
            "do_train": True,
            "finetuning_type": "full",
            "attention": "bidirectional",
            "pooling": "mean",
            "loss_temperature": 0.05,
            "dataset": "triplets",
            "dataset_dir": str(self.data),
            "disable_shuffling": True,
            "template": "default",
            "cutoff_len": 96,
            "output_dir": str(output),
            "per_device_train_batch_size": 4,
            "max_steps": STEPS,
            "optim": "adamw_torch",
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **on_cpu,
            **options,
        }
        path = self.bench.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
        command = [self.python, "-m", "llamafactory.cli", "train", str(path)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{name}: " + " | ".join(done.stderr.splitlines()[-3:]))
        history = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]
