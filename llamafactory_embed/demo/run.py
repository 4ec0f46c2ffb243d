"""`llamafactory-embed demo`: from a language model to an embedder that answers queries, in minutes on a CPU."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..foreign import read_yaml
from ..hparams.command_line import add_options, read_options
from ..hparams.option import option
from .quiet import output_to
from .smollm2 import LAYERS


if TYPE_CHECKING:
    from .pace import Pace, StepPlan
    from .report import DemoOutcome

RECIPE = Path("examples/quickstart/wordnet_lora.yaml")
MATERIALS = (str(RECIPE), "data/dataset_info.json", "data/wordnet")
LOG_NAME = "demo.log"
# Looking at the neighbours of the trained model after its evaluation, as a part of what trying the base model took.
NEIGHBOURS_SHARE = 0.7
BM25, AS_IT_IS, TRAINED = "BM25, counting words", "the language model as it is", "after {} training steps"

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs."""

    recipe: Path = option(RECIPE, "Recipe to run.", metavar="FILE")
    minutes: float = option(
        5.0,
        "Time for all but the download of the model: the number of training steps is chosen so that it fits.",
        minimum=0.1,
    )
    layers: int = option(6, f"Layers of SmolLM2-135M to keep, of {LAYERS}.", minimum=1, maximum=LAYERS)
    only_model: bool = option(False, "Prepare the model's folder and stop.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, DemoOptions)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the model, try it as it is, train it for as long as the clock allows, and show what it learned."""
    options = read_options(arguments, DemoOptions)
    fetch_materials(options.recipe)
    recipe = read_demo_recipe(options.recipe)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is enough, and several would need torchrun
    log = Path(recipe["output_dir"], LOG_NAME)
    log.unlink(missing_ok=True)
    try:
        with output_to(log) as terminal:
            demonstrate(options, recipe, partial(print, file=terminal, flush=True))
    except (ValueError, KeyboardInterrupt):
        raise
    except Exception as error:  # of the host, torch, …: the traceback is in the log
        raise ValueError(f"The demo broke off: {type(error).__name__}: {error}. All messages: {log}") from error
    return 0


def demonstrate(options: DemoOptions, recipe: dict[str, Any], say: Say) -> None:
    """The steps of the demo, one after another; what they print goes to the log, what they `say` to the terminal."""
    from .model import prepare_model

    say(f"Everything that libraries print: {Path(recipe['output_dir'], LOG_NAME)}\n\nThe model")
    prepare_model(Path(recipe["model_name_or_path"]), options.layers, say)
    if options.only_model:
        return
    start = time.monotonic()  # how long a download takes says nothing of the machine
    from .report import write_report

    outcome = train_and_compare(options, recipe, start, say)
    page = write_report(outcome)
    show_outcome(outcome, page, time.monotonic() - start, say)


def fetch_materials(recipe: Path) -> None:
    """Write the recipe and its data where they are not, as in an empty folder with an installed wheel."""
    if recipe.is_file():
        return
    if recipe != RECIPE:
        raise ValueError(f"`--recipe {recipe}`: there is no such file.")
    from ..materials.update import write_materials

    written = write_materials(Path("."), MATERIALS)
    if written.conflicting or written.kept:
        raise ValueError(
            f"{(written.conflicting + written.kept)[0]} is here already and is not the demo's: run the demo in an "
            "empty folder."
        )
    print(f"Wrote {RECIPE} and its data. `llamafactory-embed init` writes all recipes.\n")


def read_demo_recipe(path: Path) -> dict[str, Any]:
    """The recipe, which must say what the demo relies on."""
    recipe = read_yaml(path)
    needed = ("model_name_or_path", "output_dir", "eval_dataset", "dataset_dir", "max_steps")
    missing = [name for name in needed if not isinstance(recipe, dict) or not recipe.get(name)]
    if missing or recipe.get("stage") != "contrastive":
        raise ValueError(
            f"{path} is no recipe for the demo, which needs `stage: contrastive` with {', '.join(needed)}"
            + (f"; it lacks {', '.join(missing)}." if missing else ".")
        )
    return dict(recipe)


def train_and_compare(options: DemoOptions, recipe: Mapping[str, Any], start: float, say: Say) -> DemoOutcome:
    """Try the model as it is, time a few steps, train as many as fit, and try the result."""
    from ..encoder.encoder import Encoder
    from ..host.training import run_recipe
    from ..train.trainer import RECIPE_NAME
    from .pace import Progress, measure_pace, plan_steps, planned_settings
    from .report import DemoOutcome, describe_machine
    from .results import bm25_metrics, load_evals, neighbours_of_samples, open_base_model, read_run, try_model

    evals = load_evals(recipe)
    say(f"\nBefore training: {sum(len(each.queries) for each in evals)} held-out queries")
    began = time.monotonic()
    base = try_model(open_base_model(recipe), evals)
    trying = time.monotonic() - began
    say(f"  nDCG@10 {100 * base.metrics['ndcg@10']:.1f}, {trying:.0f} s")

    machine = describe_machine()
    say(f"\nTraining on {machine}")
    pace, now = measure_pace(recipe), time.monotonic()
    afterwards = trying * (1 + NEIGHBOURS_SHARE)
    plan = plan_steps(pace, recipe["max_steps"], now - start, afterwards, options.minutes, now)
    remarks = describe_plan(plan, pace, recipe["max_steps"], options.minutes)
    say("\n".join(f"  {line}" for line in remarks))
    progress = Progress(plan.deadline, say)
    run_recipe({**recipe, **planned_settings(plan, recipe)}, [progress])

    output = Path(recipe["output_dir"])
    trained = read_run(output)
    if trained.steps < plan.steps:
        remarks.append(
            f"The machine has become slower, and the time was over at step {trained.steps}, before the learning rate "
            "had come down."
        )
        say(f"  {remarks[-1]}")
    samples = neighbours_of_samples(Encoder(output), evals)
    rows = {BM25: bm25_metrics(evals), AS_IT_IS: base.metrics, TRAINED.format(trained.steps): trained.metrics}
    command = shlex.join(["llamafactory-cli", "train", str(output / RECIPE_NAME)])
    seconds = time.monotonic() - start
    return DemoOutcome(
        output, command, trained.steps, seconds, rows, base.samples, samples, trained.losses, remarks, machine
    )


def describe_plan(plan: StepPlan, pace: Pace, most: int, minutes: float) -> list[str]:
    """What will happen, and what other choice there is."""
    each = f"A step takes {pace.step:.2g} s"
    whole = (plan.seconds + (most - plan.steps) * pace.step) / 60
    if plan.deadline is None:
        return [
            f"{each}: even {plan.steps} steps, the fewest that show something, will take {plan.seconds / 60:.0f} "
            f"minutes in all instead of {minutes:g} (Ctrl-C stops)."
        ]
    if plan.steps < most:
        longer = f"the recipe's {most} would take {whole:.0f}: `--minutes {math.ceil(whole * 1.1)}`"
        return [f"{each}: {plan.steps} steps fit into {minutes:g} minutes; {longer}."]
    return [f"{each}: all {most} steps of the recipe will take {plan.seconds / 60:.1f} minutes."]


def show_outcome(outcome: DemoOutcome, page: Path, seconds: float, say: Say) -> None:
    """The table, the neighbours of a few queries, and where everything is."""
    from .report import usage_lines
    from .results import table_lines

    say("\n" + "\n".join(table_lines(outcome.rows, "Finding the word for a definition, in %")))
    for before, after in zip(outcome.before, outcome.after, strict=True):
        say(f"\n  “{after.query}”")
        for name, sample in (("before", before), ("after", after)):
            say(f"    {name:6}  {', '.join(text for text, _ in sample.neighbours)}")
    say(
        f"\nTook {seconds / 60:.1f} minutes.\n"
        f"  all of this as a page   {page}\n"
        f"  the loss as a picture   {outcome.output / 'training_loss.png'}\n"
        f"  the model's card        {outcome.output / 'README.md'}\n"
    )
    say("Use it:\n\n" + "\n".join(f"  {line}".rstrip() for line in usage_lines(outcome.output).split("\n")))
    say("\nContinue with all tasks and full fine-tuning:\n")
    say("  llamafactory-embed init && llamafactory-cli train examples/train_full/wordnet_full.yaml\n")
