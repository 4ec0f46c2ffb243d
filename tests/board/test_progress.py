"""The live picture of a run: what its files say, and the log of evaluations that one of them is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.board import progress
from llamafactory_embed.board.progress import draw_progress, read_progress, smoothed
from llamafactory_embed.files import EVALUATIONS_NAME
from llamafactory_embed.train.embed.tdro.history import HISTORY_NAME
from llamafactory_embed.train.evaluation_log import EvaluationLog


def write_lines(path: Path, *entries: dict[str, Any], rest: str = "") -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + rest, "utf-8")


def test_loss_metric_and_weights_are_read(tmp_path: Path) -> None:
    assert not read_progress(tmp_path).has_more_than_the_loss
    losses = [{"current_steps": step, "loss": 4.0 / step} for step in (1, 2)]
    write_lines(tmp_path / progress.HOST_LOG, *losses, {"current_steps": 2, "eval_loss": 1.0}, rest='{"current_st')
    assert not read_progress(tmp_path).has_more_than_the_loss
    write_lines(
        tmp_path / EVALUATIONS_NAME, {"step": 0, "eval_ndcg@10": 0.1, "eval_loss": 9}, {"step": 2, "eval_ndcg@10": 0.3}
    )
    write_lines(tmp_path / HISTORY_NAME, *({"step": step, "weight": {"a": 0.5, "b": 0.5 + step}} for step in (1, 2)))
    seen = read_progress(tmp_path)
    assert progress.TASK_WEIGHTS == HISTORY_NAME
    assert seen.losses == [(1, 4.0), (2, 2.0)]
    assert (seen.metric, seen.values) == ("nDCG@10", [(0, 0.1), (2, 0.3)])
    assert seen.weights == {"a": [(1, 0.5), (2, 0.5)], "b": [(1, 1.5), (2, 2.5)]}

    loss, weights, metric = draw_progress(seen).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[4.0, 2.0], smoothed([4.0, 2.0])]
    assert [list(line.get_ydata()) for line in metric.lines] == [[0.1, 0.3]]
    assert [line.get_label() for line in weights.lines] == ["b", "a"]  # the heaviest first


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"eval_loss": 2.0, "eval_bits_per_token": 3.0}, "bound (bits per token)"),
        ({"eval_loss": 2.0, "eval_f1": 0.5}, "F1"),
        ({"eval_loss": 2.0, "eval_accuracy": 0.5}, "accuracy"),
        ({"eval_other": 2.0}, ""),
    ],
)
def test_each_stage_shows_its_own_metric(metrics: dict[str, float], name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / EVALUATIONS_NAME, {"step": 1} | metrics)
    seen = read_progress(tmp_path)
    assert (seen.metric, bool(seen.values)) == (name, bool(name))
    draw_progress(seen)


def test_smoothing_keeps_what_is_constant() -> None:
    assert smoothed([3.0] * 4) == pytest.approx([3.0] * 4)
    assert smoothed([1.0, 0.0]) == pytest.approx([1.0, 0.2 * 0.8 / (0.2 * 0.8 + 0.2)])


def test_a_run_that_goes_on_keeps_its_evaluations(tmp_path: Path) -> None:
    log = EvaluationLog()
    args: Any = SimpleNamespace(output_dir=str(tmp_path / "run"))

    def run(start: int, *steps: int, is_first: bool = True) -> list[int]:
        log.on_train_begin(args, SimpleNamespace(is_world_process_zero=is_first, global_step=start), None)  # type: ignore[arg-type]
        for step in steps:
            state: Any = SimpleNamespace(is_world_process_zero=is_first, global_step=step)
            log.on_evaluate(args, state, None, metrics={"eval_f1": 0.5})  # type: ignore[arg-type]
        lines = (tmp_path / "run" / EVALUATIONS_NAME).read_text("utf-8").splitlines()
        assert all(json.loads(line)["eval_f1"] == 0.5 for line in lines)
        return [json.loads(line)["step"] for line in lines]

    assert run(0, 0, 10, 20) == [0, 10, 20]
    assert run(10, 20, 30) == [0, 10, 20, 30]
    assert run(10, 40, is_first=False) == [0, 10, 20, 30]  # other ranks leave the file alone
    assert run(0, 0) == [0]
