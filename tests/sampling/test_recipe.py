"""Recipes with `do_predict: true`, from the YAML's keys to the file, with a model that knows one text by heart."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train.tuner import run_exp

from tests.sampling.memory import TEXT, memorize


pytestmark = pytest.mark.usefixtures("single_process")
ROOT = Path(__file__).parents[2]
STARTS = ("To be prepared", "To be")  # cut between tokens


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The memorized text as a document, and in halves as prompt and answer."""
    texts = [{"text": TEXT}] * 3
    pairs = [{"instruction": f"<s>{start}", "output": TEXT.removeprefix(start)} for start in STARTS]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    info = {
        "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}},
        "pairs": {"file_name": "pairs.jsonl", "columns": {"prompt": "instruction", "response": "output"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return tmp_path


def predict(data: Path, output: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
    run_exp(
        {
            "model_name_or_path": str(memorize(True)),
            "finetuning_type": "full",
            "do_predict": True,
            "dataset_dir": str(data),
            "cutoff_len": 64,
            "max_new_tokens": 36,
            "diffusion_steps": 36,
            "do_sample": False,
            "output_dir": str(output),
            "overwrite_cache": True,
            "report_to": "none",
            "use_cpu": True,
        }
        | options
    )
    lines = (output / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((output / "predict_results.json").read_text("utf-8"))


@pytest.mark.parametrize("task", ["prompt", "unconditional", "infilling"])
def test_documents(task: str, data: Path, tmp_path: Path) -> None:
    options = {"stage": "ddm", "eval_dataset": "texts", "predict_task": task, "prompt_tokens": 5, "gap_tokens": 7}
    lines, metrics = predict(data, tmp_path / "out", **options, denoising_pictures=1)
    assert len(lines) == 3
    for line in lines:
        if task == "prompt":
            assert line["prompt"].removeprefix("<s>") + line["predict"] == TEXT
        else:
            assert line["predict"] == TEXT
    assert metrics.get("predict_exact_match") == (None if task == "unconditional" else 100)
    assert metrics["predict_samples"] == 3
    assert (tmp_path / "out" / "denoising_0.gif").is_file()


def test_answers(data: Path, tmp_path: Path) -> None:
    options = {"stage": "ddm-sft", "eval_dataset": "pairs", "template": "empty", "confidence_threshold": 0.9}
    lines, metrics = predict(data, tmp_path / "out", **options, block_length=8, sampling_cache="dual")
    assert [line["prompt"].removeprefix("<s>") + line["predict"] for line in lines] == [TEXT, TEXT]
    assert [line["label"] for line in lines] == [TEXT.removeprefix(start) for start in STARTS]
    assert metrics["predict_exact_match"] == 100
    assert metrics["predict_forwards"] < 36
    assert metrics["predict_tokens_per_second"] > 0


def test_several_answers_to_a_prompt(data: Path, tmp_path: Path) -> None:
    rest = TEXT.removeprefix(STARTS[0])
    right = [["To be or not", rest], [rest.strip(" ."), "no"], ["for war", "no"], ["peace and war"]]
    rows = [{"instruction": f"<s>{STARTS[0]}", "output": json.dumps(answers)} for answers in right]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, metrics = predict(data, tmp_path / "out", stage="ddm-sft", eval_dataset="pairs", template="empty")
    assert metrics["predict_exact_match"] == 25
    assert metrics["predict_em"] == 50
    assert metrics["predict_contains"] == 75


def run_script(name: str, *arguments: Path | str) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / name))["main"]
    main(list(map(str, arguments)))


def add_entry(data: Path, name: str) -> None:
    """The bundled entry of a data set, for the file in the folder of the test."""
    entry = json.loads((ROOT / "data" / "dataset_info.json").read_text("utf-8"))[name]
    assert entry["file_name"] == f"../cache/{name}.jsonl"
    info = json.loads((data / "dataset_info.json").read_text("utf-8"))
    info[name] = entry | {"file_name": f"{name}.jsonl"}
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def humaneval_tasks() -> list[dict[str, str]]:
    """Two made-up tasks, whose programs are the text that the model knows."""
    solutions = [" for war", " of preserving"]
    parts = [(solution, *TEXT.split(solution)) for solution in solutions]
    return [
        {
            "task_id": f"SingleLineInfilling/HumanEval/{number}/L0",
            "entry_point": "f",
            "prompt": prompt,
            "suffix": suffix,
            "canonical_solution": solution,
            "test": "",
        }
        for number, (solution, prompt, suffix) in enumerate(parts)
    ]


def test_humaneval_infilling(data: Path, tmp_path: Path) -> None:
    """From the benchmark to the samples, and every program is whole again."""
    benchmark, rows = tmp_path / "benchmark.jsonl.gz", data / "humaneval_infill.jsonl"
    tasks = humaneval_tasks()
    with gzip.open(benchmark, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(task) + "\n" for task in tasks)
    run_script("humaneval_infill.py", "rows", benchmark, "--output", rows)
    add_entry(data, "humaneval_infill")
    options = {"stage": "ddm", "eval_dataset": "humaneval_infill", "predict_task": "infilling"}
    lines, metrics = predict(data, tmp_path / "out", **options)
    assert [line["gap_labels"] for line in lines] == [[" for war"], [" of preserving"]]
    assert [line["label"] for line in lines] == [TEXT, TEXT]
    assert metrics["predict_gap_em"] == metrics["predict_exact_match"] == 100

    predictions, samples = tmp_path / "out" / "generated_predictions.jsonl", tmp_path / "samples.jsonl"
    run_script("humaneval_infill.py", "samples", benchmark, predictions, "--output", samples)
    written = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    assert [set(sample) for sample in written] == [{"task_id", "completion"}] * 2
    for task, sample in zip(tasks, written, strict=True):
        assert sample["task_id"] == task["task_id"]
        assert task["prompt"] + sample["completion"] + task["suffix"] == TEXT


def test_samples_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "humaneval_infill.py"))
    samples, tasks = script["samples_of_predictions"], humaneval_tasks()
    filled = [{"gaps": [" x"], "gap_labels": [task["canonical_solution"]]} for task in tasks]
    assert [sample["completion"] for sample in samples(tasks, filled)] == [" x", " x"]
    with pytest.raises(ValueError, match=r"1 predictions for 2 tasks: predict all rows \(`max_samples`\)"):
        samples(tasks, filled[:1])
    with pytest.raises(ValueError, match="HumanEval/0/L0 is one for another text"):
        samples(tasks, filled[::-1])
    with pytest.raises(ValueError, match="HumanEval/0/L0 is one for another text"):
        samples(tasks, [{"predict": TEXT}] * 2)
    (tmp_path / "tasks.jsonl").write_text('{"task_id": "x", "prompt": ""}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="task 1 has no `suffix`"):
        script["read_tasks"](tmp_path / "tasks.jsonl")
    (tmp_path / "tasks.jsonl").write_text('{"task_id": "x"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: this is not JSON"):
        script["read_tasks"](tmp_path / "tasks.jsonl")


@pytest.mark.parametrize("missing", [1, 3, 5])
def test_rows_of_rocstories(missing: int, tmp_path: Path) -> None:
    stories, output = tmp_path / "stories.csv", tmp_path / "rows" / "stories.jsonl"
    header = ",".join(["storyid", "storytitle", *(f"sentence{number}" for number in range(1, 6))])
    stories.write_text(f'{header}\n7,A title,One.,"Two, and ""more"".", Three. ,Four.,Five.\n', encoding="utf-8-sig")
    run_script("rocstories_infill.py", stories, "--missing", str(missing), "--output", output)
    (row,) = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert row["text"].replace("<gap>", row["answer"]) == 'One. Two, and "more". Three. Four. Five.'
    assert row["answer"] == {1: "One.", 3: " Three.", 5: " Five."}[missing]
    stories.write_text(f"{header}\n7,A title,One.,Two.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"stories\.csv:2: `sentence3` is empty"):
        run_script("rocstories_infill.py", stories, "--output", output)
    stories.write_text("storyid,sentence1\n7,One.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column `sentence2`"):
        run_script("rocstories_infill.py", stories, "--output", output)


def test_refused_options(data: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"diffusion_steps": 0}, "`diffusion_steps` must be at least 1"),
        ({"sampling_cache": "dual"}, "`sampling_cache: dual` works block by block: set `block_length`"),
        ({"cache_refresh_steps": 2}, "`cache_refresh_steps` needs a `sampling_cache`"),
        ({"confidence_threshold": 0.9, "confidence_factor": 1.0}, "not both"),
        ({"confidence_threshold": 0.9, "sampling_algorithm": "entropy"}, "needs probabilities"),
        ({"sampling_algorithm": "maskgit"}, "did you mean `maskgit_plus`"),
        ({"max_new_tokens": 0, "max_length": 0}, "`max_new_tokens` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            predict(data, tmp_path / "out", **{"stage": "ddm", "eval_dataset": "texts"} | changes)
