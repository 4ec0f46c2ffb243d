"""The live picture of a run in LLaMA Board's page; for the seam `board`."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import gradio as gr

from ..board.progress import draw_progress, read_progress


def apply_picture(runner: ModuleType) -> None:
    """Metrics and task weights beside the loss, for the runs that log them."""
    host_get_trainer_info = runner.get_trainer_info
    host_monitor = runner.Runner.monitor
    latest: list[Any] = []  # the folder of the run that is watched

    def get_trainer_info(lang: str, output_path: Any, do_train: bool) -> tuple[str, Any, dict[str, Any]]:
        log, progress_bar, shown = host_get_trainer_info(lang, output_path, do_train)
        latest[:] = [output_path] if do_train else []
        if do_train and "loss_viewer" in shown:
            progress = read_progress(output_path)
            if progress.has_more_than_the_loss:
                shown["loss_viewer"] = gr.Plot(draw_progress(progress))
        return log, progress_bar, shown

    def monitor(self: Any) -> Iterator[dict[Any, Any]]:
        """The host looks at a run every two seconds, and no more when it is over: its last evaluation would not be
        seen."""
        yield from host_monitor(self)
        progress = read_progress(latest[0]) if latest else None
        if progress is not None and progress.has_more_than_the_loss:
            yield {self.manager.get_elem_by_id("train.loss_viewer"): gr.Plot(draw_progress(progress))}

    runner.get_trainer_info = get_trainer_info  # type: ignore[attr-defined]
    runner.Runner.monitor = monitor
