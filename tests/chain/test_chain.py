"""Chains: what their files may say, the order of their steps, and how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed.chain.definition import Chain, read_chain
from llamafactory_embed.chain.report import write_chain_page
from llamafactory_embed.chain.run import read_done, recipe_to_run, run_chain, shown_command


STEPS: list[dict[str, Any]] = [
    {"name": "first", "train": "recipe.yaml"},
    {"name": "second", "train": "recipe.yaml", "options": {"model_name_or_path": "$first", "max_steps": 7}},
    {"name": "both", "merge": ["$first", "$second"], "options": {"method": "slerp", "weights": [0.5, 0.5]}},
    {"name": "scores", "eval": "$both", "options": {"tasks": ["mine"], "default_prompts": False}},
    {"name": "served", "export": "$both"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stage: contrastive\nmodel_name_or_path: tiny\nmax_steps: 3\n")
    return tmp_path


def make_chain(folder: Path, steps: list[dict[str, Any]], **more: Any) -> Chain:
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "out", "steps": steps} | more, sort_keys=False))
    return read_chain(path)


class Runs:
    """Runs nothing: keeps the commands, makes the folders, and fails where it should."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.logs: list[str] = []

    def __call__(self, command: list[str], log: Path) -> int:
        log.write_text("line of the step\n")
        log.with_suffix("").mkdir(exist_ok=True)
        self.logs.append(log.stem)
        return int(log.stem == self.fails_at)


def test_steps_are_fed_by_those_before(folder: Path) -> None:
    steps = {step.name: step for step in make_chain(folder, STEPS).steps}
    assert recipe_to_run(steps["second"]) == {
        "stage": "contrastive",
        "model_name_or_path": "out/1_first",
        "max_steps": 7,
        "output_dir": "out/2_second",
        "overwrite_output_dir": True,
    }
    merge = "llamafactory-embed merge out/1_first out/2_second --output out/3_both --method slerp --weights 0.5 0.5"
    assert shown_command(steps["both"]) == merge
    score = "llamafactory-embed eval out/3_both --output out/4_scores --tasks mine --no-default-prompts"
    assert shown_command(steps["scores"]) == score
    assert shown_command(steps["served"]) == "llamafactory-embed export out/3_both out/5_served"


def test_a_training_with_checkpoints_is_taken_up(folder: Path) -> None:
    step = make_chain(folder, STEPS).steps[0]
    (folder / "out/1_first/checkpoint-2").mkdir(parents=True)
    assert recipe_to_run(step)["overwrite_output_dir"] is False


def test_a_chain_goes_on_where_it_stopped(folder: Path) -> None:
    chain = make_chain(folder, STEPS)
    lines: list[str] = []
    first = Runs(fails_at="3_both")
    with pytest.raises(ValueError, match=r"Step `both` ended with exit code 1; .*\n  line of the step"):
        run_chain(chain, lines.append, first)
    assert first.logs == ["1_first", "2_second", "3_both"]

    second = Runs()
    done = run_chain(chain, lines.append, second)
    assert second.logs == ["3_both", "4_scores", "5_served"]
    assert list(done) == ["first", "second", "both", "scores", "served"]
    assert read_done(folder / "out") == done
    assert "2/5 second (train): done before" in lines
    nothing = Runs()
    run_chain(chain, lines.append, nothing)
    assert nothing.logs == []


def test_what_has_changed_is_not_taken_for_done(folder: Path) -> None:
    """A recipe that changed makes its step anew, and those that were made from it."""
    run_chain(make_chain(folder, STEPS), lambda line: None, Runs())
    changed = [STEPS[0], {**STEPS[1], "options": {"model_name_or_path": "$first", "max_steps": 8}}, *STEPS[2:]]
    chain = make_chain(folder, changed)
    with pytest.raises(ValueError, match=r"Step `second` of .* is not what out/2_second was made by"):
        run_chain(chain, lambda line: None, Runs())
    for name in ("2_second", "3_both", "4_scores", "5_served"):
        (folder / "out" / name).rmdir()
    again = Runs()
    run_chain(chain, lambda line: None, again)
    assert again.logs == ["2_second", "3_both", "4_scores", "5_served"]


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (
            [{"name": "a", "trian": "recipe.yaml"}],
            "says what the step does; did you mean `train`",
        ),
        ([{"name": "a b", "train": "recipe.yaml"}], "step 1: a step needs a `name`"),
        ([{"name": "a", "train": "gone.yaml"}], "there is no recipe gone.yaml"),
        ([{"name": "a", "merge": ["$b", "c"]}], "no earlier step is named `b`"),
        ([STEPS[0], STEPS[0]], "step 2: the name `first` is taken"),
        ([{"name": "a", "train": "recipe.yaml", "options": {"output_dir": "x"}}], "the chain itself chooses"),
        ([{"name": "a", "train": "recipe.yaml", "options": ["x"]}], "`options` must map names to values"),
    ],
)
def test_files_that_say_something_else(folder: Path, steps: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_chain(folder, steps)


def test_other_files(folder: Path) -> None:
    with pytest.raises(ValueError, match="There is no chain gone"):
        read_chain(Path("gone.yaml"))
    with pytest.raises(ValueError, match=r"must hold `output_dir` and a list `steps`"):
        make_chain(folder, [])
    with pytest.raises(ValueError, match="unknown key `step`"):
        make_chain(folder, STEPS, step=[])


@pytest.mark.parametrize("example", sorted(Path("examples/chain").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_can_be_read(example: Path) -> None:
    chain = read_chain(example)
    last_training = max(step.number for step in chain.steps if step.kind == "train")
    assert all(step.needs for step in chain.steps if step.number > last_training)


def test_the_page_shows_what_each_step_achieved(folder: Path) -> None:
    chain = make_chain(folder, STEPS)
    done = run_chain(chain, lambda line: None, Runs())
    history = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 1.25}, {"step": 2, "eval_loss": 9.0}]
    (folder / "out/1_first/trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "out/1_first/all_results.json").write_text('{"eval_ndcg@10": 0.5, "train_runtime": 17.0}')
    scores = [{"task": "<mine>", "metric": "ndcg_at_10", "scores": {"both": 0.25}}]
    (folder / "out/4_scores/summary.json").write_text(json.dumps({"models": ["both"], "scores": scores}))
    page = write_chain_page(chain, done).read_text(encoding="utf-8")
    assert "3.50 to 1.25" in page
    assert "eval_ndcg@10" in page
    assert "train_runtime" not in page
    assert "&lt;mine&gt;" in page
    assert "25.00" in page
    assert "llamafactory-embed merge out/1_first out/2_second" in page
