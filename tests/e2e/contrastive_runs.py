"""Runs of `stage: contrastive` on a tiny model, in this process or in each rank of torchrun, and what came of them.

`torchrun --nproc-per-node 2 -m tests.e2e.contrastive_runs FOLDER` reads `FOLDER/runs.json` (name → what the recipe
says beyond `recipe`), performs one run after the other, so that the host is imported once, and leaves
`FOLDER/<name>.pt`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled


WORDNET = Path(__file__).parents[2] / "data" / "wordnet"

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
LATENT = {"pooling": "latent", "latents": 6, "latent_heads": 4}
DENSE = {"dense_sizes": [24, 16], "dense_activations": ["gelu", "identity"]}
MULTI_VECTOR: dict[str, Any] = {"multi_vector": True, "dense_sizes": [16], "candidate_tile": 4}
# Search, pairs with scores and with labels, and a teacher whose vectors are of another size, beside a loss and alone.
OBJECTIVES: dict[str, Any] = {
    "dataset": "nouns,scored,labelled,taught,copied",
    "objectives": {
        "nouns": {"same_side_negatives": True, "candidate_tile": 4, "num_negatives": 0, "spread_out_weight": 0.1},
        "scored": {"loss": "cosent", "weight": 0.5},
        "labelled": {"loss": "pairs", "pair_margin": 0.8, "num_negatives": 0},
        "taught": {"vector_weight": 2.0},
        "copied": {"loss": "vector_distillation", "vector_distance": "mse"},
    },
    "teacher_projection": True,
    "max_steps": 11,  # each task has its turn
}


@dataclass
class RunResult:
    """What a run leaves behind; losses and metrics are those of the Trainer's own log."""

    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Those of the first step."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """All that learn, after the last step."""
    rank_difference: float = 0.0
    """The largest difference of a parameter between this rank and another."""


class Recorder(TrainerCallback):
    """Copies the log, and gradients and parameters where no engine has cut them into shards."""

    def __init__(self) -> None:
        self.result = RunResult()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.result.gradients:
            self.result.gradients = {
                name: parameter.grad.clone()
                for name, parameter in learning(kwargs["model"])
                if parameter.grad is not None
            }

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.result.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.result.metrics = [
            {name: value for name, value in entry.items() if name.startswith("eval_")}
            for entry in state.log_history
            if any(name.startswith("eval_") for name in entry)
        ]
        self.result.parameters = {name: each.detach().clone() for name, each in learning(kwargs["model"])}
        self.result.rank_difference = max(map(difference_of_ranks, self.result.parameters.values()), default=0.0)


def learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that learn, unless they are in shards."""
    if is_fsdp() or is_deepspeed_zero3_enabled():
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def is_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def difference_of_ranks(tensor: Tensor) -> float:
    if not dist.is_initialized():
        return 0.0
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return float(torch.stack([(part - tensor).abs().max() for part in parts]).max())  # NaN if there is one


def write_data(folder: Path) -> Path:
    """A `dataset_dir`: two retrieval tasks, held-out rows of them, scored and labelled pairs, texts with the vectors
    of a teacher, texts that repeat."""
    rows = {}
    for name, file in {"nouns": "gloss_to_noun", "words": "example_to_word"}.items():
        lines = (WORDNET / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
        rows[name] = [json.loads(line) for line in lines[:64]]
        rows[f"{name}_heldout"] = [json.loads(line) for line in lines[64:104]]
    queries = [row["query"] for row in rows["nouns"]]
    rows["scored"] = [
        {"query": query, "positive": other, "score": number % 7 / 7}
        for number, (query, other) in enumerate(zip(queries, reversed(queries), strict=True))
    ]
    rows["labelled"] = [{**row, "score": number % 2} for number, row in enumerate(rows["scored"])]
    rows["taught"] = [
        {"query": query, "positive": f"answer {n}", "teacher_vectors": [math.sin(n + k) for k in range(6)]}
        for n, query in enumerate(queries)
    ]
    rows["copied"] = [{**row, "positive": row["positive"][::-1]} for row in rows["taught"]]
    rows["repeating"] = [{"query": query, "positive": f"answer {n % 9}"} for n, query in enumerate(queries)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    info = {name: {"file_name": f"{name}.jsonl", "formatting": "retrieval"} for name in rows}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def recipe(model: Path | str, data: Path | str, output_dir: Path | str, **options: Any) -> dict[str, Any]:
    """Three steps on two tasks; `batch_size` is that of all ranks together."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size = options.pop("batch_size", 8)
    return {
        "model_name_or_path": str(model),
        "stage": "contrastive",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "nouns,words",
        "dataset_dir": str(data),
        "template": "default",
        "cutoff_len": 48,
        "output_dir": str(output_dir),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "per_device_train_batch_size": batch_size // world_size,
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


def perform(recipe: dict[str, Any]) -> RunResult:
    """Train by a recipe through the host, in this process."""
    from llamafactory.train.tuner import run_exp

    recorder = Recorder()
    run_exp(dict(recipe), callbacks=[recorder])
    return recorder.result


def let_accelerate_shard_on_a_cpu() -> None:
    """accelerate ignores FSDP where it finds no accelerator, but FSDP2 itself runs on gloo."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    own_init = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        own_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or vars(self).get("fsdp_plugin")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def let_deepspeed_build_nothing() -> None:
    """On a CPU it compiles an operation that only inference uses, which takes a minute or two."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main(folder: Path, recipe: Callable[..., dict[str, Any]]) -> None:
    """Perform the runs that `folder` asks for, in this rank."""
    runs: dict[str, dict[str, Any]] = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    from llamafactory.train import tuner

    if is_fsdp():
        let_accelerate_shard_on_a_cpu()
    if any("deepspeed" in options for options in runs.values()):
        let_deepspeed_build_nothing()
    tuner.dist.destroy_process_group = lambda: None  # the next run needs it
    for name, options in runs.items():
        result = perform(recipe(output_dir=folder / name, **options))
        if dist.get_rank() == 0:
            torch.save(asdict(result), folder / f"{name}.pt")
        dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), recipe)
