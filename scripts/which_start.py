"""Which start makes the better embedder? One language model, five starts, three poolings, one contrastive training.

    nice python scripts/which_start.py --seeds 42 43 44     # from the root of the repository; resumes where it stopped
    python scripts/which_start.py --only-page               # writes the tables of docs/which-start.md anew

SmolLM2-135M, cut to its first layers, is used as it is (causal, bidirectional) or adapted first (mntp, ddm, blocks),
then trained by `contrastive` with mean, last and mask pooling. It is judged on held-out rows of the trained tasks and
on a task that was not trained (which_start_data.py), documents in float, int8 and bits. The extra rows tell what
adapting cost from what it brought: next-token prediction on the same tokens, and a longer contrastive training. Each
run is a recipe below the output folder, run in a process of its own; what is in the results is not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from which_start_data import HELD_OUT, TRAINED, read_judged, read_training_texts, write_data
from which_start_page import POOLINGS, RESULTS, write_page

from llamafactory_embed.data.packages import default_cache
from llamafactory_embed.demo.smollm2 import prepare_smollm2
from llamafactory_embed.files import write_json, write_text


ROOT = Path(__file__).parents[1]
PRECISIONS = ("float32", "int8", "binary")
MASK = "<empty_output>"  # a token that the model has and no text uses: the mask of every stage and of the pooling
MASK_TOKENS = 2
NEEDED = (
    "llamafactory.train.tuner",
    "llamafactory_embed.train.embed.contrastive.workflow",
    "llamafactory_embed.train.embed.mntp.workflow",
    "llamafactory_embed.train.ddm.workflow",
    "llamafactory_embed.evaluation.in_training",
    "transformers.models.llama.modeling_llama",
)

Row = dict[str, Any]

# How a start is adapted before the contrastive training.
ADAPTATIONS: dict[str, Row] = {
    "mntp": {"stage": "mntp", "masking": "bert", "mlm_probability": 0.2, "mask_token": MASK},
    "ddm": {"stage": "ddm", "mask_token": MASK},
    "block_ddm": {"stage": "ddm", "mask_token": MASK, "block_size": 16},
    "next_token": {"stage": "pt"},
}


@dataclass(frozen=True)
class Cell:
    """One embedder: what it starts from, its pooling, and its seed."""

    start: str
    pooling: str
    seed: int
    attention: str = "bidirectional"
    adaptation: str | None = None
    times_steps: int = 1
    """How many times the steps of a contrastive training."""

    @property
    def name(self) -> str:
        return f"{self.start}-{self.pooling}-{self.seed}"


def grid(seed: int, poolings: Sequence[str] = POOLINGS) -> Iterator[Cell]:
    """The starts that are compared."""
    for pooling in poolings:
        yield Cell("causal", pooling, seed, "causal")
        yield Cell("bidirectional", pooling, seed)
        for adaptation in ("mntp", "ddm", "block_ddm"):
            yield Cell(adaptation, pooling, seed, adaptation=adaptation)


def controls(seed: int, times: int) -> Iterator[Cell]:
    """As many tokens as the adapted starts have read, spent otherwise."""
    longer = f"{times} times the contrastive steps"
    for attention in ("causal", "bidirectional"):
        yield Cell(f"{attention}, next-token prediction", "mean", seed, attention, "next_token")
    for attention in ("causal", "bidirectional"):
        yield Cell(f"{attention}, {longer}", "mean", seed, attention, times_steps=times)


# --------------------------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------------------------


def common(arguments: argparse.Namespace, steps: int, seed: int) -> Row:
    """What all trainings share. Embeddings stay as they are, so that the mask token is the same vector everywhere."""
    return {
        "do_train": True,
        "finetuning_type": "freeze",
        "freeze_trainable_layers": arguments.layers,
        "cutoff_len": 64,
        "max_steps": steps,
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }


def adaptation_recipe(arguments: argparse.Namespace, adaptation: str, seed: int, output: Path) -> Row:
    """Reads prose of this repository."""
    return {
        "model_name_or_path": str(arguments.model),
        **common(arguments, arguments.adaptation_steps, seed),
        **ADAPTATIONS[adaptation],
        "dataset_dir": str(ROOT / "data"),
        "dataset": "prose",
        "per_device_train_batch_size": arguments.adaptation_rows,
        "output_dir": str(output),
    }


def contrastive_recipe(arguments: argparse.Namespace, cell: Cell, model: Path, data: Path, output: Path) -> Row:
    """The same for every start, but for the attention of the causal one."""
    return {
        "model_name_or_path": str(model),
        **common(arguments, arguments.steps * cell.times_steps, cell.seed),
        "stage": "contrastive",
        "attention": cell.attention,
        "pooling": cell.pooling,
        **({"mask_tokens": MASK_TOKENS, "mask_token": MASK} if cell.pooling == "mask" else {}),
        "query_template": "{text}",
        "loss_temperature": 0.05,
        "num_negatives": 0,
        "dataset_dir": str(data),
        "dataset": ",".join(TRAINED),
        "dataset_weights": "uniform",
        "per_device_train_batch_size": arguments.batch_size,
        "output_dir": str(output),
    }


# --------------------------------------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------------------------------------


def in_own_process(function: Callable[..., None], *arguments: Any, log: Path) -> None:
    """Run a function in a child of this process, which has the imports already; its output goes into `log`."""

    def child() -> None:
        with log.open("w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"A run ended with exit code {process.exitcode}: its output is in {log}.")


def train(recipe: Path) -> None:
    """As `llamafactory-cli train` does."""
    from llamafactory.train.tuner import run_exp

    run_exp(yaml.safe_load(recipe.read_text("utf-8")))


def train_and_judge(recipe: Path, checkpoint: Path, data: Path, found: Path) -> None:
    train(recipe)
    write_json(found, judge(checkpoint, data))


def judge(checkpoint: Path, data: Path) -> Row:
    """nDCG@10 of each task, documents in each precision and queries in float."""
    import torch
    from torch.nn.functional import normalize

    from llamafactory_embed.encoder.encoder import Encoder
    from llamafactory_embed.evaluation.in_training import rank_documents, retrieval_metrics
    from llamafactory_embed.model.quantization import rounded

    encoder = Encoder(checkpoint)
    encoder.calibrate(read_training_texts(data, 50))
    tasks: Row = {}
    for task in (*TRAINED, *HELD_OUT):
        judged = read_judged(data, task)
        queries = encoder.encode(judged.queries, role="query", convert_to="torch")
        documents = encoder.encode(judged.documents, role="document")
        relevant = [frozenset([answer]) for answer in judged.answers]
        tasks[task] = {}
        for precision in PRECISIONS:
            ranges = encoder.ranges_for(precision, encoder.dimension, encoder.config.normalize)
            stored = normalize(torch.from_numpy(rounded(documents, precision, ranges)), dim=-1)
            metrics = retrieval_metrics(rank_documents(queries, stored, 100), relevant)
            tasks[task][precision] = metrics["ndcg@10"]
    return tasks


def perform(recipe: Row, log: Path, function: Callable[..., None] = train, *arguments: Any) -> float:
    """Write a recipe, run it, and return its seconds."""
    path = log.with_suffix(".yaml")
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    start = time.time()
    in_own_process(function, path, *arguments, log=log)
    return time.time() - start


def last_loss(output: Path) -> float:
    history = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    return float([each["loss"] for each in history if "loss" in each][-1])


def adapted(arguments: argparse.Namespace, adaptation: str, seed: int, results: Row) -> Path:
    """The checkpoint of an adaptation, made when it is first asked for."""
    name = f"{adaptation}-{seed}"
    output = arguments.output / name
    if not (output / "trainer_state.json").is_file():
        shutil.rmtree(output, ignore_errors=True)
        recipe = adaptation_recipe(arguments, adaptation, seed, output)
        seconds = perform(recipe, arguments.output / f"{name}.log")
        results["adaptations"][name] = {"loss": last_loss(output), "seconds": round(seconds, 1)}
        write_json(arguments.results, results)
        print(f"{name}: {results['adaptations'][name]}", flush=True)
    return output


def run_cell(arguments: argparse.Namespace, cell: Cell, data: Path, results: Row) -> None:
    """Train and judge an embedder, and keep what was found; its weights are removed."""
    name = cell.name.replace(", ", "-").replace(" ", "_")
    output, found = arguments.output / name, arguments.output / f"{name}.json"
    model = arguments.model
    if cell.adaptation is not None:
        model = adapted(arguments, cell.adaptation, cell.seed, results)
    shutil.rmtree(output, ignore_errors=True)
    recipe = contrastive_recipe(arguments, cell, model, data, output)
    seconds = perform(recipe, arguments.output / f"{name}.log", train_and_judge, output, data, found)
    results["cells"][cell.name] = {
        "start": cell.start,
        "pooling": cell.pooling,
        "seed": cell.seed,
        "loss": last_loss(output),
        "ndcg@10": json.loads(found.read_text("utf-8")),
        "seconds": round(seconds, 1),
    }
    write_json(arguments.results, results)
    shutil.rmtree(output)
    print(f"{cell.name}: {results['cells'][cell.name]['ndcg@10']} in {seconds:.0f} s", flush=True)


def read_results(arguments: argparse.Namespace) -> Row:
    """What was found before, by the same settings."""
    names = (
        "layers",
        "steps",
        "adaptation_steps",
        "batch_size",
        "adaptation_rows",
        "learning_rate",
        "rows",
        "queries",
    )
    settings = {name: getattr(arguments, name) for name in names}
    if not arguments.results.is_file():
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        return {"settings": settings, "adaptations": {}, "cells": {}}
    results: Row = json.loads(arguments.results.read_text("utf-8"))
    if results["settings"] != settings:
        raise ValueError(f"{arguments.results} was made with {results['settings']}, not with {settings}: remove it.")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("saves/which_start"))
    parser.add_argument("--results", type=Path, default=RESULTS / "which_start.json")
    parser.add_argument("--packages", type=Path, default=None, help="where the packages lie (default: the cache)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--layers", type=int, default=4, help="of SmolLM2's 30")
    parser.add_argument("--steps", type=int, default=20, help="of contrastive training")
    parser.add_argument("--poolings", choices=POOLINGS, nargs="+", default=POOLINGS)
    parser.add_argument("--without-controls", action="store_true", help="the grid alone")
    parser.add_argument("--times", type=int, default=3, help="the steps, for the controls that are not adapted")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--adaptation-steps", type=int, default=24)
    parser.add_argument("--adaptation-rows", type=int, default=4, help="of 64 tokens, in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--rows", type=int, default=1000, help="of each task, to train on")
    parser.add_argument("--queries", type=int, default=64, help="of each task, to judge by")
    parser.add_argument("--only-page", action="store_true", help="run nothing, write the page's tables")
    arguments = parser.parse_args(argv)
    arguments.model = Path("models") / f"smollm2-{arguments.layers}-layers"

    if not arguments.only_page:
        run_grid(arguments)
    write_page()


def run_grid(arguments: argparse.Namespace) -> None:
    """All cells, seed by seed, then the controls, so that whole seeds are there whenever it is stopped."""
    results = read_results(arguments)
    prepare_smollm2(arguments.model, layers=arguments.layers)
    arguments.output.mkdir(parents=True, exist_ok=True)
    packages = arguments.packages or default_cache() / "packages"
    data = write_data(arguments.output / "data", packages, arguments.rows, arguments.queries)

    for module in NEEDED:  # here once, for all children
        importlib.import_module(module)

    cells = [cell for seed in arguments.seeds for cell in grid(seed, arguments.poolings)]
    if not arguments.without_controls:
        cells += [cell for seed in arguments.seeds for cell in controls(seed, arguments.times)]
    for cell in cells:
        if cell.name not in results["cells"]:
            run_cell(arguments, cell, data, results)


if __name__ == "__main__":
    main()
