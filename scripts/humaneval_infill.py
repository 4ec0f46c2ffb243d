"""HumanEval infilling: rows for `predict_task: infilling`, and from its predictions the samples that OpenAI's harness
reads. Nothing is executed here.

    python scripts/humaneval_infill.py rows HumanEval-SingleLineInfilling.jsonl.gz \
        --output cache/humaneval_infill.jsonl
    llamafactory-cli train examples/inference/gpt2_full_ddm-infill.yaml eval_dataset=humaneval_infill \
        max_samples=10000 cutoff_len=1024 diffusion_steps=64 output_dir=output/humaneval
    python scripts/humaneval_infill.py samples HumanEval-SingleLineInfilling.jsonl.gz \
        output/humaneval/generated_predictions.jsonl --output samples.jsonl

The benchmarks are those of github.com/openai/human-eval-infilling (Bavarian et al. 2022, arXiv 2207.14255). A gap has
as many tokens as the solution of the benchmark. A model wrote what the harness runs: run it in a sandbox, with

    evaluate_infilling_functional_correctness samples.jsonl --benchmark_name=single-line
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafactory_embed.data.gaps import GAP_MARK
from llamafactory_embed.files import write_text


COLUMNS = ("task_id", "prompt", "suffix", "canonical_solution")

Row = Mapping[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, which may be gzipped."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for number, line in enumerate(content.decode("utf-8").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: this is not JSON ({error}).") from None
    return rows


def read_tasks(path: Path) -> list[dict[str, Any]]:
    tasks = read_lines(path)
    for number, task in enumerate(tasks, start=1):
        missing = [column for column in COLUMNS if column not in task]
        if missing:
            raise ValueError(f"{path}: task {number} has no `{missing[0]}`: name a benchmark of human-eval-infilling.")
    return tasks


def row_of_task(task: Row) -> dict[str, str]:
    """The program with a gap in the place of the solution."""
    text = task["prompt"] + GAP_MARK + task["suffix"]
    if text.count(GAP_MARK) > 1:
        raise ValueError(f"{task['task_id']}: the program has {GAP_MARK} in it, which marks the gap: leave it out.")
    return {"task_id": task["task_id"], "text": text, "answer": task["canonical_solution"]}


def samples_of_predictions(tasks: Sequence[Row], predictions: Sequence[Row]) -> list[dict[str, str]]:
    """What was filled in for each task, which the predictions follow one by one."""
    if len(predictions) != len(tasks):
        raise ValueError(
            f"There are {len(predictions)} predictions for {len(tasks)} tasks: predict all rows (`max_samples`)."
        )
    samples = []
    for task, prediction in zip(tasks, predictions, strict=True):
        expected = [_letters(task["canonical_solution"])]
        if [_letters(label) for label in prediction.get("gap_labels") or []] != expected:
            raise ValueError(
                f"The prediction for {task['task_id']} is one for another text: name the predictions of this "
                "benchmark, made with `stage: ddm` and `predict_task: infilling`."
            )
        samples.append({"task_id": task["task_id"], "completion": prediction["gaps"][0]})
    return samples


def _letters(text: str) -> str:
    """A text without its spaces, which some tokenizers do not keep."""
    return "".join(text.split())


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows", help="write the rows of a data set")
    samples = commands.add_parser("samples", help="write the samples that the harness reads")
    for command in (rows, samples):
        command.add_argument("benchmark", type=Path, help="JSONL with task_id, prompt, suffix and canonical_solution")
        command.add_argument("--output", type=Path, required=True)
    samples.add_argument("predictions", type=Path, help="generated_predictions.jsonl")
    asked = parser.parse_args(arguments)
    tasks = read_tasks(asked.benchmark)
    if asked.command == "rows":
        written = [row_of_task(task) for task in tasks]
    else:
        written = samples_of_predictions(tasks, read_lines(asked.predictions))
    write_lines(asked.output, written)
    print(f"{len(written)} {asked.command} are in {asked.output}.")


if __name__ == "__main__":
    main()
