"""Judge models on tasks with mteb: every model on every task, found again where it was judged before."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..encoder.encoder import Encoder
from .models import EMPTY_META, Judged, list_models, wrap_encoder
from .options import EvaluationOptions
from .prompts import check_prompt_keys
from .report import Summary, write_summary
from .search import EXACT, make_faiss_index
from .tasks import ChosenTask, choose_tasks


logger = logging.getLogger(__name__)

FAILURES = "failures.log"  # tracebacks, for those who want to know more than the sentence
OWN_RESULTS = "local"  # the folder of results on local data, which no leaderboard takes


def evaluate(options: EvaluationOptions, tell: Callable[[str], None] = logger.info) -> Summary:
    """Run what the options say, and write the results: mteb's own files, and a summary of them. `tell` hears of each
    result as it comes."""
    if options.index != EXACT:
        make_faiss_index(options.index, dimension=64)  # refuses what FAISS cannot make before anything is embedded
    tasks = choose_tasks(options.tasks, options.dataset_dir, options.languages)
    check_prompt_keys(options.prompts or (), [part.metadata.name for chosen in tasks for part in chosen.parts])
    judged = list_models(options, [chosen.name for chosen in tasks if chosen.is_local])
    summary = Summary([each.label for each in judged])
    for each in judged:
        judge(each, tasks, Path(options.output), summary, tell)
    write_summary(summary, Path(options.output))
    return summary


def judge(
    judged: Judged,
    tasks: Sequence[ChosenTask],
    output: Path,
    summary: Summary,
    tell: Callable[[str], None] = logger.info,
    again: bool = False,
) -> None:
    """One model on all tasks. A task that fails is told and does not stop the others."""
    model: Any = None
    try:
        for chosen in tasks:
            if judged.searches_only and not chosen.is_retrieval:
                continue
            result = None if again else find_result(judged, chosen, output)
            is_outdated = result is not None and result.dataset_revision != chosen.task.metadata.revision
            if result is None or is_outdated:
                model = judged.open() if model is None else model
                try:
                    result = run_task(model, chosen, output, again or is_outdated)
                except Exception as error:  # hours of other tasks must not be lost with this one
                    with open(output / FAILURES, "a", encoding="utf-8") as file:
                        file.write(f"{judged.label} on {chosen.name}\n{traceback.format_exc()}\n")
                    reason = " ".join(str(error).split()) or type(error).__name__
                    summary.failures.append(f"{judged.label} on {chosen.name}: {reason}")
                    tell(f"{judged.label}  {chosen.name}  failed")
                    continue
            summary.add(chosen, judged.label, result)
            tell(f"{judged.label}  {chosen.name}  {100 * result.get_score():.2f}")
    finally:
        if hasattr(model, "close"):
            model.close()


def run_task(model: Any, chosen: ChosenTask, output: Path, again: bool = False) -> Any:
    """mteb's result; of subsets of a task that were judged before, the others are run."""
    import mteb

    result = mteb.evaluate(
        model,
        [chosen.task],
        cache=results_folder(chosen, output),
        overwrite_strategy="always" if again else "only-missing",
        co2_tracker=False,
        show_progress_bar=False,
    )
    if result.exceptions:  # a private data set that cannot be had
        raise ValueError(result.exceptions[0].exception)
    return result.task_results[0]


class NotJudgedYetError(Exception):
    """A result is not there, so the model is needed."""


def find_result(judged: Judged, chosen: ChosenTask, output: Path) -> Any:
    """The whole result of an earlier run, or None. mteb itself looks for it, with a stand-in for the model that it
    must not need. It takes a whole result as it is, even if the data have changed since."""
    from mteb.models.model_meta import ModelMeta

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotJudgedYetError

    experiment = judged.experiment or None
    named = {"name": judged.name, "revision": judged.revision, "experiment_kwargs": experiment, "loader": refuse}
    try:
        return run_task(ModelMeta(**(EMPTY_META | named), framework=[]), chosen, output)
    except NotJudgedYetError:
        return None


def results_folder(chosen: ChosenTask, output: Path) -> Any:
    """mteb's files lie in `results/<organization>__<model>/<revision>`, as in the leaderboard's repository."""
    import mteb

    return mteb.ResultCache(output / OWN_RESULTS if chosen.is_local else output)


def evaluate_encoder(encoder: Encoder, tasks: Sequence[ChosenTask], name: str, output: Path) -> dict[str, float]:
    """Judge an Encoder in memory, after training: main scores as `<task>_<metric>`."""
    local = frozenset(chosen.name for chosen in tasks if chosen.is_local)
    with tempfile.TemporaryDirectory() as vectors:
        options = EvaluationOptions(checkpoints=[name], tasks=[chosen.name for chosen in tasks], vectors=vectors)
        model = wrap_encoder(encoder, name, IN_MEMORY, None, {}, options, local)
        summary = Summary([name])
        judge(Judged(name, IN_MEMORY, lambda: model, label=name), tasks, output, summary, again=True)
    write_summary(summary, output)
    for failure in summary.failures:
        logger.warning("`eval_tasks`: %s", failure)
    return {f"{line.task}_{line.metric}": line.scores[name] for line in summary.lines}


IN_MEMORY = "in_training"  # the revision of a model that is no checkpoint
