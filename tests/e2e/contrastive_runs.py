"""Runs of `stage: contrastive` on a tiny model, in this process or in each rank of torchrun, and what came of them.

`torchrun --nproc-per-node 2 contrastive_runs.py FOLDER` reads `FOLDER/runs.json` (name → recipe), performs one run
after the other, so that the host is imported once, and leaves `FOLDER/<name>.pt`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback


REPOSITORY = Path(__file__).parents[2]


@dataclass
class RunResult:
    """What a run leaves behind; losses, norms and metrics are those of the Trainer's own log."""

    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Those of the first step."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """All that were trained, after the last step."""
    rank_difference: float = 0.0
    """The largest difference of a trained parameter between two ranks."""
    error: str = ""


class Recorder(TrainerCallback):
    """Reads gradients and parameters that no engine has cut into shards."""

    def __init__(self, result: RunResult, is_sharded: bool) -> None:
        self.result = result
        self.is_sharded = is_sharded

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and not self.is_sharded:
            self.result.gradients = {
                name: parameter.grad.clone() for name, parameter in trained(kwargs["model"]) if parameter.grad is not None
            }

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.result.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.result.metrics = [entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)]
        if self.is_sharded:
            return
        self.result.parameters = {
            name: parameter.detach().clone() for name, parameter in trained(kwargs["model"])
        }
        self.result.rank_difference = max(map(difference_of_ranks, self.result.parameters.values()))


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [
        (name.removeprefix("module."), parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def difference_of_ranks(tensor: Tensor) -> float:
    if not dist.is_initialized():
        return 0.0
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return max(float((part - tensor).abs().max()) for part in parts)


def recipe(model: Path | str, output_dir: Path | str, **options: Any) -> dict[str, Any]:
    """Three steps on two WordNet tasks; `batch_size` is that of all ranks together."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size = options.pop("batch_size", 8)
    return {
        "model_name_or_path": str(model),
        "stage": "contrastive",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "wordnet_gloss_to_noun,wordnet_example_to_word",
        "dataset_dir": str(REPOSITORY / "data"),
        "template": "default",
        "max_samples": 64,
        "cutoff_len": 48,
        "output_dir": str(output_dir),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "per_device_train_batch_size": batch_size // world_size,
        "max_steps": 3,
        # Steps as large as the gradient, so that an error of the gradient is one of the parameters; Adam divides by
        # the gradient's size and would turn rounding into differences.
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }


def perform(recipe: dict[str, Any], is_sharded: bool = False) -> RunResult:
    """Train by a recipe through the host, in this process."""
    from llamafactory.train.tuner import run_exp

    result = RunResult()
    run_exp(dict(recipe), callbacks=[Recorder(result, is_sharded)])
    return result


def let_accelerate_shard_on_a_cpu() -> None:
    """Accelerate ignores FSDP where there is no accelerator, but FSDP2 itself runs on gloo."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    host_init = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        host_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or vars(self).get("fsdp_plugin")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


def main(folder: Path) -> None:
    runs: dict[str, dict[str, Any]] = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    from llamafactory.train import tuner

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_accelerate_shard_on_a_cpu()
    tuner.dist.destroy_process_group = lambda: None  # the next run needs it
    for name, options in runs.items():
        model = options.pop("model")
        is_sharded = options.pop("is_sharded", False)
        try:
            result = perform(recipe(model, folder / f"out-{name.replace('/', '-')}", **options), is_sharded)
        except Exception as error:
            import traceback

            traceback.print_exc()
            result = RunResult(error=f"{type(error).__name__}: {error}")
        if dist.get_rank() == 0:
            torch.save(asdict(result), folder / f"{name.replace('/', '-')}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
