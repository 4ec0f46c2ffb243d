"""tDRO on real tasks: does a small embedder trained by task weights find more than one trained on all tasks alike?

    python scripts/tdro_evidence.py --model models/smollm2-6-layers --seeds 42 43 44 --measures ratio difference

Ten tasks train and three that no stage sees stand aside (tdro_evidence_data.py); held-out rows of each judge. For each
seed: stage 0 (uniform); then for each measure stage 1 (weights) and stage 2 by `curr_weights.json` and by
`top70_weights.json`. Results go to `results.json` and `results.md` in the output folder; what is there already is not
run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tdro_evidence_data import HELD_OUT_TASKS, NEGATIVES, TASKS, write_data

from llamafactory_embed.data.packages import default_cache


WEIGHTS = ("curr", "top70")

Row = dict[str, Any]


def recipes(arguments: argparse.Namespace, data: Path, folder: Path, seed: int) -> dict[str, Row]:
    """The runs of a seed, in their order; each run's name is its folder's."""
    own = folder / str(seed)
    shared = {
        "model_name_or_path": str(arguments.model),
        "do_train": True,
        "finetuning_type": "full",
        "attention": "bidirectional",
        "pooling": "mean",
        "loss_temperature": 0.05,
        "query_template": "{text}",
        "dataset_dir": str(data),
        "dataset": ",".join(TASKS),
        "dataset_weights": "uniform",
        "cutoff_len": arguments.cutoff_len,
        "per_device_train_batch_size": arguments.batch_size,
        "max_steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": arguments.steps // 10,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }
    judged = {"do_eval": True, "eval_dataset": ",".join(f"{task}_heldout" for task in (*TASKS, *HELD_OUT_TASKS))}
    contrastive = {**shared, **judged, "stage": "contrastive", "num_negatives": 1}
    weighing = {
        **shared,
        "stage": "tdro",
        "ref_model": str(own / "s0"),
        "num_negatives": NEGATIVES,
        "max_steps": arguments.weighing_steps or arguments.steps,
        "tdro_lr": arguments.tdro_lr,
    }
    runs = {"s0": contrastive}
    for measure in arguments.measures:
        runs[f"s1_{measure}"] = {**weighing, "tdro_measure": measure}
        for weights in WEIGHTS:
            file = own / f"s1_{measure}" / f"{weights}_weights.json"
            runs[f"s2_{measure}_{weights}"] = {**contrastive, "dataset_weights": str(file)}
    return {name: {**recipe, "output_dir": str(own / name)} for name, recipe in runs.items()}


def perform(recipe: Row) -> None:
    """Run a recipe unless it has been run."""
    output = Path(recipe["output_dir"])
    if (output / ("eval_results.json" if recipe["stage"] == "contrastive" else "train_results.json")).is_file():
        return
    from llamafactory.train.tuner import run_exp

    print(f"== {output}", flush=True)
    run_exp(dict(recipe))


def summarize(folder: Path, seed: int, measures: Sequence[str]) -> Row:
    """What a seed's runs found: nDCG@10 by task, its mean and worst over the trained tasks, and its mean over the
    others; and the weights."""

    def read(*place: str) -> Row:
        found: Row = json.loads(folder.joinpath(str(seed), *place).read_text("utf-8"))
        return found

    weights = {each: read(f"s1_{each}", "curr_weights.json")["domain_weights"] for each in measures}
    runs = {}
    for run in ("s0", *(f"s2_{measure}_{each}" for measure in measures for each in WEIGHTS)):
        found = read(run, "eval_results.json")
        tasks = {task: found[f"eval_{task}_ndcg@10"] for task in (*TASKS, *HELD_OUT_TASKS)}
        trained = [tasks[task] for task in TASKS]
        others = [tasks[task] for task in HELD_OUT_TASKS]
        runs[run] = {
            "tasks": tasks,
            "mean": sum(trained) / len(trained),
            "worst": min(trained),
            "held_out": sum(others) / len(others),
        }
    return {"weights": weights, "runs": runs}


def as_markdown(results: dict[str, Row]) -> str:
    """Each run's mean over the seeds with its standard deviation, the seeds' own figures, and the tasks."""
    seeds = list(results)
    runs = list(results[seeds[0]]["runs"])

    def values(run: str, *key: str) -> list[float]:
        found = []
        for seed in seeds:
            value = results[seed]["runs"][run]
            for each in key:
                value = value[each]
            found.append(value)
        return found

    def cell(numbers: Sequence[float]) -> str:
        spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
        return f"{np.mean(numbers):.3f}{spread}"

    lines = ["| run | mean nDCG@10 | by seed | worst task | by seed | held-out tasks |", "|---|---|---|---|---|---|"]
    for run in runs:
        mean, worst, held_out = (values(run, key) for key in ("mean", "worst", "held_out"))
        by_seed = [" / ".join(f"{each:.3f}" for each in numbers) for numbers in (mean, worst)]
        lines.append(f"| {run} | {cell(mean)} | {by_seed[0]} | {cell(worst)} | {by_seed[1]} | {cell(held_out)} |")

    measures = list(results[seeds[0]]["weights"])
    header = ["task", *(f"weight by {measure}" for measure in measures), *runs]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for task in (*TASKS, *HELD_OUT_TASKS):
        weights = [
            cell([results[seed]["weights"][measure][task] for seed in seeds]) if task in TASKS else ""
            for measure in measures
        ]
        found = [f"{np.mean(values(run, 'tasks', task)):.3f}" for run in runs]
        lines.append(f"| {' | '.join([task, *weights, *found])} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-6-layers"))
    parser.add_argument("--output", type=Path, default=Path("saves/tdro_evidence"))
    parser.add_argument("--packages", type=Path, default=None, help="where the packages lie (default: the cache)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--measures", nargs="+", default=["ratio"], help="of stage 1, one chain each")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weighing-steps", type=int, default=None, help="of stage 1 (default: as many)")
    parser.add_argument("--rows", type=int, default=1000, help="of each task, to train on")
    parser.add_argument("--held-out", type=int, default=100, help="of each task, to judge by")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cutoff-len", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tdro-lr", type=float, default=0.02)
    arguments = parser.parse_args(argv)

    packages = arguments.packages or default_cache() / "packages"
    data = write_data(arguments.output / "data", packages, arguments.rows, arguments.held_out)
    for seed in arguments.seeds:
        for recipe in recipes(arguments, data, arguments.output, seed).values():
            perform(recipe)
    results = {str(seed): summarize(arguments.output, seed, arguments.measures) for seed in arguments.seeds}
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = as_markdown(results)
    (arguments.output / "results.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
