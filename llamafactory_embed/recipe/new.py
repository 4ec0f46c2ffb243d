"""`llamafactory-embed recipe new`: a commented recipe that fits the memory one has."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..hparams.option import option
from .memory import GIB, ModelShape
from .planning import Method, RunPlan, Wish, plan_run
from .writing import comment_lines, option_lines


STAGES = ("contrastive", "mntp", "ddm", "ddm-sft")
# Rows of a batch on one device, if nobody says otherwise.
ROWS = {"contrastive": 64, "mntp": 32, "ddm": 32, "ddm-sft": 32}
PURPOSES = {
    "contrastive": "an embedder: texts that belong together get similar vectors",
    "mntp": "a decoder that reads in both directions, the first of LLM2Vec's steps",
    "ddm": "a diffusion language model, pre-trained on documents",
    "ddm-sft": "a diffusion language model that answers",
}


@dataclass
class NewRecipeOptions:
    """What the recipe is for. What is not given is asked for on a terminal."""

    stage: Literal["contrastive", "mntp", "ddm", "ddm-sft"] | None = option(
        None, "What is trained: contrastive (an embedder), mntp (bidirectional attention), ddm, ddm-sft (diffusion)."
    )
    model: str = option("", "Model to start from: a folder, or a name of the hub.")
    data: str = option("", "Data sets to train on, as `dataset_info.json` names them, with commas.")
    memory: str = option("", "Memory of one GPU, such as 24GB; with `--gpus 0`, that of the machine.")
    gpus: int = option(1, "How many GPUs; 0: a CPU.", minimum=0, metavar="N")
    dataset_dir: str = option("data", "Folder of `dataset_info.json`.")
    length: int = option(512, "Most tokens of a text.", minimum=8)
    rows: int | None = option(
        None, "Rows of a batch on one GPU; empty: 64, or 32 where tokens are predicted.", minimum=1
    )
    method: Literal["auto", "full", "lora", "qlora"] = option(
        "auto", "What learns: all weights, an adapter, an adapter on weights of 4 bits, or the first that fits."
    )
    output_dir: str = option("", "Folder for the checkpoint; empty: saves/ and the names of model and stage.")


def new_recipe(options: NewRecipeOptions) -> str:
    """The text of the recipe."""
    from .shapes import read_shape

    options = with_answers(options)
    if options.stage not in STAGES:
        raise ValueError(f"`--stage` must be one of {', '.join(STAGES)}, not {options.stage!r}.")
    shape = read_shape(options.model)
    rows = options.rows or ROWS[options.stage]
    memory = parse_memory(options.memory)
    method: Method = options.method
    wish = Wish(options.stage, method, rows, options.length, memory, options.gpus)
    return write_recipe(options, shape, wish, plan_run(shape, wish))


def with_answers(options: NewRecipeOptions, ask: Callable[[str], str] = input) -> NewRecipeOptions:
    """Ask for what is missing, where somebody can answer."""
    questions = {
        "stage": f"Stage ({', '.join(STAGES)}): ",
        "model": "Model (folder or name of the hub): ",
        "data": f"Data sets (of {options.dataset_dir}/dataset_info.json): ",
        "memory": "Memory of one GPU (such as 24GB): ",
    }
    missing = [name for name in questions if not getattr(options, name)]
    if missing and not (sys.stdin.isatty() and sys.stdout.isatty()):
        flags = ", ".join(f"`--{name}`" for name in missing)
        raise ValueError(f"{flags}: give a value; questions are asked on a terminal only.")
    for name in missing:
        answer = ask(questions[name]).strip()
        if not answer:
            raise ValueError(f"`--{name}` needs a value.")
        setattr(options, name, answer)
    return options


def parse_memory(text: str) -> float:
    """Bytes of "24GB", "24 GiB" or "24"; sellers and drivers both mean 2**30 by a GB of memory."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib|)\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"`--memory` must be a size such as 24GB, not {text!r}.")
    return float(found[1]) * (GIB / 1024 if found[2].startswith("m") else GIB)


def write_recipe(options: NewRecipeOptions, shape: ModelShape, wish: Wish, plan: RunPlan) -> str:
    """The lines, section by section."""
    name = options.model.rstrip("/").rpartition("/")[2].lower()
    output = options.output_dir or f"saves/{name}_{wish.stage}"
    lines = header(options, shape, wish, plan)
    lines += ["", "### model", *option_lines("model_name_or_path", options.model)]
    if plan.method == "qlora":
        lines += option_lines("quantization_bit", 4) + option_lines("double_quantization", True)
    if not plan.checkpointing:
        lines += option_lines("disable_gradient_checkpointing", True, "what is kept fits: nothing is recomputed")
    lines += ["", "### method", *option_lines("stage", wish.stage), *option_lines("do_train", True)]
    lines += method_lines(plan) + stage_lines(wish.stage, plan)
    lines += ["", "### dataset", *option_lines("dataset_dir", options.dataset_dir)]
    lines += option_lines("dataset", options.data) + option_lines("cutoff_len", options.length)
    if wish.stage == "ddm-sft":
        lines += option_lines("template", "default", "the model's own, if it has one")
    lines += ["", "### output", *option_lines("output_dir", output), *option_lines("logging_steps", 10)]
    lines += option_lines("save_steps", 500) + option_lines("plot_loss", True) + option_lines("report_to", "none")
    return "\n".join([*lines, *training_lines(wish.stage, wish, plan)]) + "\n"


def header(options: NewRecipeOptions, shape: ModelShape, wish: Wish, plan: RunPlan) -> list[str]:
    """What it is, how it is run, and the estimate."""
    estimate = plan.estimate
    parts = [("weights", estimate.weights), ("optimizer", estimate.optimizer), ("gradients", estimate.gradients)]
    parts += [("activations", estimate.activations), ("logits", estimate.logits)]
    shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= GIB / 20)
    device = f"each of {wish.gpus} GPUs" if wish.gpus > 1 else "a GPU" if wish.gpus else "a machine without GPU"
    start = "FORCE_TORCHRUN=1 " if plan.zero_stage or wish.gpus > 1 else ""
    return [
        *comment_lines(f"{options.model} becomes {PURPOSES[wish.stage]}."),
        "#",
        f"#   {start}llamafactory-cli train RECIPE.yaml",
        "#",
        *comment_lines(
            f"Written by `llamafactory-embed recipe new` for {device} of {wish.memory / GIB:g} GB: "
            f"{shape.weights / 1e9:.2f} billion weights, texts of at most {wish.length} tokens. "
            f"Estimated peak: {estimate.total / GIB:.1f} GB "
            f"({shown}). Not run."
        ),
    ]


def method_lines(plan: RunPlan) -> list[str]:
    """What learns, and how it is spread over GPUs."""
    if plan.method == "full":
        lines = option_lines("finetuning_type", "full")
        if plan.zero_stage:
            file = f"examples/deepspeed/ds_z{plan.zero_stage}_config.json"
            lines += option_lines("deepspeed", file, "spreads what one GPU cannot hold")
        return lines
    lines = option_lines("finetuning_type", "lora") + option_lines("lora_rank", 16) + option_lines("lora_alpha", 32)
    return lines + option_lines("lora_target", "all")


def stage_lines(stage: str, plan: RunPlan) -> list[str]:
    """The options of the stage that one would want to see."""
    if stage == "contrastive":
        lines = option_lines("attention", "bidirectional") + option_lines("pooling", "mean")
        lines += option_lines("loss_temperature", 0.02) + option_lines(
            "query_template", "e5", "how an instruction stands"
        )
        lines += option_lines("num_negatives", 1, "of each row, beside the other rows' passages")
        if plan.grad_cache_tokens:
            lines += option_lines("grad_cache_tokens", plan.grad_cache_tokens, "the batch stays whole, in chunks")
        return lines
    if stage == "mntp":
        lines = option_lines("mask_token", "blank", "the token `_`; `mask` adds one")
        return lines + option_lines("mlm_probability", 0.2)
    return option_lines("mask_token", "mask", "a new token, unless the model has one")


def training_lines(stage: str, wish: Wish, plan: RunPlan) -> list[str]:
    """Batch, rate and precision."""
    rates: dict[tuple[str, bool], Any] = {
        ("contrastive", True): 2e-5, ("contrastive", False): 1e-4, ("mntp", True): 2e-5, ("mntp", False): 5e-5,
    }  # fmt: skip
    rate = rates.get((stage, plan.method == "full"), 5e-5 if plan.method == "full" else 1e-4)
    lines = ["", "### train", *option_lines("per_device_train_batch_size", plan.rows)]
    if plan.accumulation > 1:
        lines += option_lines("gradient_accumulation_steps", plan.accumulation)
    lines += option_lines("learning_rate", rate) + option_lines("lr_scheduler_type", "cosine")
    lines += option_lines("warmup_steps", 0.05, "a share of all steps") + option_lines("num_train_epochs", 1.0)
    lines += option_lines("bf16", True) if wish.gpus else option_lines("use_cpu", True)
    return lines + option_lines("seed", 42)
