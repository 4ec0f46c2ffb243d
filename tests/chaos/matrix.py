"""20 steps = 7 + kill -9 + 13, bit for bit: every stage, in every way of running it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tests.e2e import contrastive_runs, ddm_runs, tdro_runs, token_runs
from tests.tiny_models import save_tiny_model

from .jobs import digest_of
from .writing_calls import require_one_thread


STEPS, SAVED_AT = 20, 7
ZERO_2 = Path(__file__).parents[2] / "examples" / "deepspeed" / "ds_z2_config.json"

# Dropout, a schedule and an optimizer with states: all that a checkpoint has to bring back.
COMMON: dict[str, Any] = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED_AT, "batch_size": 4, "optim": "adamw_torch",
    "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "finetuning_type": "lora", "lora_rank": 4,
    "lora_target": "all", "lora_dropout": 0.2,
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "tdro": tdro_runs.TDRO | {"tdro_measure": "loss"},
    "mntp": {},
    "ddm": {"stage": "ddm"},
    "ddm-sft": ddm_runs.SFT,
    "word-task": {"stage": "word-task", "train_backbone": "lora", "dataset": "tagged"},
}
WAYS: dict[str, dict[str, Any]] = {
    "one process": {},
    "2 ranks": {},
    "ZeRO-2": {"deepspeed": str(ZERO_2)},
    "accumulation": {"gradient_accumulation_steps": 2, "batch_size": 2},
    "GradCache": {"grad_cache_tokens": 60},
    "budget": {"auto_token_budget": True, "max_tokens_per_batch": 60},
    "streaming": {"streaming": True},
    "workers": {"dataloader_num_workers": 2},
}
NOT_THERE = {
    "GradCache": ("mntp", "ddm", "ddm-sft", "word-task"),
    "budget": ("tdro", "word-task"),
    "streaming": ("tdro",),
}
MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("contrastive", "streaming"): {"dataset_weights": "uniform"},  # a stream's sizes are not known
    ("ddm-sft", "streaming"): {"dataloader_num_workers": 1},  # into as many parts the host cuts a file
}
RANKS = {"2 ranks": 2, "ZeRO-2": 2}


@dataclass(frozen=True)
class Cell:
    """A stage in a way of running it."""

    stage: str
    way: str
    recipe: dict[str, Any]

    @property
    def ranks(self) -> int:
        return RANKS.get(self.way, 1)


class KillAfter(TrainerCallback):
    """A kill in the step after the checkpoint; each rank kills itself, as when a machine loses its power."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_substep_end(args, state, control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > SAVED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_substep_end(args, state, control)


def make_cells(root: Path, stages: Sequence[str], ways: Sequence[str]) -> Iterator[Cell]:
    """Those of these stages and ways; none named: all."""
    model = save_tiny_model(root / "model")
    data = ddm_runs.write_data(root / "data")
    documents = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    contrastive_runs.write_data(data)
    rows = [{"words": ["word"] * n, "ner": (["O", "B-X", "I-X"] * n)[:n]} for n in (3, 9, 5, 14, 2, 7, 4, 11) * 4]
    (data / "tagged.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    info |= documents | {"tagged": {"file_name": "tagged.jsonl", "formatting": "words"}}
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    for stage, options in STAGES.items():
        for way, more in WAYS.items():
            is_asked = (not stages or stage in stages) and (not ways or way in ways)
            if is_asked and stage not in NOT_THERE.get(way, ()):
                make = token_runs.recipe if stage in ("mntp", "ddm", "ddm-sft") else contrastive_runs.recipe
                folder = root / f"{stage}-{way.replace(' ', '-')}"
                recipe = make(model, data, folder, **(COMMON | options | more | MORE.get((stage, way), {})))
                recipe["per_device_train_batch_size"] //= RANKS.get(way, 1)
                yield Cell(stage, way, recipe)


def compare(cell: Cell, log: Path) -> str:
    """What came of it: nothing, or what is wrong."""
    for module in ("llamafactory.train.tuner", f"llamafactory_embed.train.{MODULES[cell.stage]}.workflow"):
        importlib.import_module(module)
    whole, killed = (cell.recipe | {"output_dir": cell.recipe["output_dir"] + end} for end in ("-whole", "-killed"))
    if any(codes := run_ranks(whole, cell.ranks, [], log)):
        return f"fails without a kill {codes}"
    codes = run_ranks(killed, cell.ranks, [KillAfter()], log)
    if any(code != -signal.SIGKILL for code in codes):
        return f"was not killed {codes}"
    left = sorted(path.name for path in Path(killed["output_dir"]).glob("checkpoint-*"))
    if left != [f"checkpoint-{SAVED_AT}"]:
        return f"left {left}"
    if any(codes := run_ranks(killed, cell.ranks, [], log)):
        return f"going on fails {codes}"
    ends = [digest_of(*sorted(Path(each["output_dir"]).glob("*model.safetensors"))) for each in (whole, killed)]
    return "" if ends[0] == ends[1] and ends[0] != digest_of() else "ends with other weights"


MODULES = {
    "contrastive": "embed.contrastive", "tdro": "embed.tdro", "mntp": "embed.mntp", "ddm": "ddm", "ddm-sft": "ddm",
    "word-task": "embed.word_task",
}  # fmt: skip


def run_ranks(recipe: dict[str, Any], ranks: int, callbacks: list[TrainerCallback], log: Path) -> list[int]:
    """Train in forks of this process, which has imported everything; the exit code of each."""
    require_one_thread()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _train(recipe, callbacks, log, rank, ranks, port)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _train(
    recipe: dict[str, Any], callbacks: list[TrainerCallback], log: Path, rank: int, ranks: int, port: int
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        if ranks > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ |= {name: str(value) for name, value in own.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from llamafactory.train.tuner import run_exp

        run_exp(dict(recipe), callbacks=list(callbacks))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_matrix(root: Path, log: Path, stages: Sequence[str], ways: Sequence[str]) -> bool:
    """Print a line a cell; whether all are equal."""
    is_sound = True
    print("| stage | way | 20 = 7 + kill + 13 | seconds |\n|---|---|---|---|", flush=True)
    for cell in make_cells(root, stages, ways):
        started = time.monotonic()
        problem = compare(cell, log)
        is_sound &= not problem
        print(f"| {cell.stage} | {cell.way} | {problem or 'equal'} | {time.monotonic() - started:.0f} |", flush=True)
    return is_sound
