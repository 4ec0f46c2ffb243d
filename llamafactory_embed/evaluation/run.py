"""Judge models on tasks with mteb: every model on every task, unless an earlier run has the result."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..encoder.encoder import Encoder
from ..hparams.secrets import secrets_of, without_secrets
from .models import EMPTY_META, Judged, list_models, wrap_encoder
from .options import EvaluationOptions
from .prompts import check_prompt_keys, find_untrained_prompts
from .report import Summary, write_summary
from .run_files import RunFiles
from .search import EXACT, make_faiss_index
from .tasks import ChosenTask, choose_tasks


if TYPE_CHECKING:
    from mteb import ResultCache
    from mteb.results import TaskResult


logger = logging.getLogger(__name__)

FAILURES = "failures.log"  # the tracebacks of failures
OWN_RESULTS = "local"  # the folder of results on local data, which no leaderboard accepts
IN_MEMORY = "in_training"  # the revision of a model that is not a checkpoint


def evaluate(options: EvaluationOptions, report: Callable[[str], None] = logger.info) -> Summary:
    """Judge what the options name, and write the results: mteb's own files, and a summary of them. `report` gets a
    line on each result as it comes."""
    if options.index != EXACT:
        make_faiss_index(options.index, dimension=64)  # refuses what FAISS cannot make before anything is embedded
    tasks = choose_tasks(options.tasks, options.dataset_dir, options.languages)
    check_prompt_keys(options.prompts or (), [part.metadata.name for chosen in tasks for part in chosen.parts])
    judged = list_models(options, [chosen.name for chosen in tasks if chosen.is_local])
    for warning in dict.fromkeys(warn_of_prompts(each, tasks, options) for each in judged):
        if warning:
            logger.warning(warning)
    compared = {each.label: each.compared_with for each in judged if each.compared_with is not None}
    summary = Summary([each.label for each in judged], compared_with=compared)
    predictions = None if options.predictions is None else Path(options.predictions)
    for each in judged:
        judge(each, tasks, Path(options.output), summary, report, predictions=predictions)
    write_summary(summary, Path(options.output))
    return summary


def warn_of_prompts(judged: Judged, tasks: Sequence[ChosenTask], options: EvaluationOptions) -> str | None:
    """A sentence about tasks whose prompts the model was not trained with."""
    if judged.trained is None or judged.instructions is None:
        return None
    read = [(part.metadata, "query" if chosen.is_retrieval else None) for chosen in tasks for part in chosen.parts]
    template = options.query_template or judged.trained.query_template
    return find_untrained_prompts(judged.name, judged.trained, template, judged.instructions, read)


def evaluate_encoder(encoder: Encoder, tasks: Sequence[ChosenTask], name: str, output: Path) -> dict[str, float]:
    """Judge an Encoder in memory, after training: main scores as `<task>_<metric>`."""
    local = frozenset(chosen.name for chosen in tasks if chosen.is_local)
    with tempfile.TemporaryDirectory() as vectors:
        options = EvaluationOptions(checkpoints=[name], tasks=[chosen.name for chosen in tasks], vectors=vectors)
        model = wrap_encoder(encoder, name, IN_MEMORY, None, {}, options, local)
        summary = Summary([name])
        judged = Judged(name, IN_MEMORY, lambda: model, label=name, searches_only=encoder.config.multi_vector)
        judge(judged, tasks, output, summary, reuse_results=False)
    write_summary(summary, output)
    for failure in summary.failures:
        logger.warning("`eval_tasks`: %s", failure)
    return {f"{line.task}_{line.metric}": line.scores[name] for line in summary.lines}


def judge(
    judged: Judged,
    tasks: Sequence[ChosenTask],
    output: Path,
    summary: Summary,
    report: Callable[[str], None] = logger.info,
    reuse_results: bool = True,
    predictions: Path | None = None,
) -> None:
    """One model on all tasks. A task that fails is reported and does not stop the others. `predictions` is the folder
    that keeps what was retrieved."""
    runs = None if predictions is None else RunFiles(predictions, judged.label)
    model: Any = None
    try:
        for chosen in tasks:
            if judged.searches_only and not chosen.is_retrieval:
                continue
            reuse = reuse_results and (runs is None or runs.has(chosen))
            result = find_result(judged, chosen, output) if reuse else None
            is_outdated = result is not None and result.dataset_revision != chosen.task.metadata.revision
            if result is None or is_outdated:
                model = judged.open() if model is None else model
                try:
                    result = run_task(model, chosen, output, overwrite=is_outdated or not reuse, runs=runs)
                except Exception as error:  # hours of other tasks must not be lost with this one
                    record_failure(f"{judged.label} on {chosen.name}", error, output, summary)
                    report(f"{judged.label}  {chosen.name}  failed")
                    continue
            summary.add(chosen, judged.label, result)
            report(f"{judged.label}  {chosen.name}  {100 * result.get_score():.2f}")
    finally:
        if hasattr(model, "close"):  # lets other runs use the vectors, and ends processes on other devices
            model.close()


def record_failure(what: str, error: Exception, output: Path, summary: Summary) -> None:
    """A sentence for the summary, the traceback for `failures.log`; addresses in them may hold a password."""
    secrets = secrets_of()
    trace = without_secrets("".join(traceback.format_exception(error)), secrets)
    with open(output / FAILURES, "a", encoding="utf-8") as file:
        file.write(f"{what}\n{trace}\n")
    sentence = " ".join(str(error).split()) or type(error).__name__
    summary.failures.append(without_secrets(f"{what}: {sentence}", secrets))


def run_task(
    model: Any, chosen: ChosenTask, output: Path, overwrite: bool = False, runs: RunFiles | None = None
) -> TaskResult:
    """mteb's result. If some subsets of the task were judged before, only the others are run."""
    import mteb

    with tempfile.TemporaryDirectory() as predictions:
        result = mteb.evaluate(
            model,
            [chosen.task],
            cache=results_folder(chosen, output),
            overwrite_strategy="always" if overwrite else "only-missing",
            prediction_folder=None if runs is None else predictions,
            co2_tracker=False,
            show_progress_bar=False,
        )
        if runs is not None:
            runs.write(chosen, Path(predictions))
    if result.exceptions:  # a private data set that cannot be loaded
        raise ValueError(result.exceptions[0].exception)
    return result.task_results[0]


class NotJudgedYetError(Exception):
    """A result is missing, so the model is needed."""


def find_result(judged: Judged, chosen: ChosenTask, output: Path) -> TaskResult | None:
    """The complete result of an earlier run, or None. mteb itself looks for it, with a stand-in that fails when it is
    loaded as a model. mteb returns a complete result as it is, even if the data have changed since."""
    from mteb.models.model_meta import ModelMeta

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotJudgedYetError

    experiment = judged.experiment or None
    named = {"name": judged.name, "revision": judged.revision, "experiment_kwargs": experiment, "loader": refuse}
    try:
        return run_task(ModelMeta(**(EMPTY_META | named), framework=[]), chosen, output)
    except NotJudgedYetError:
        return None


def results_folder(chosen: ChosenTask, output: Path) -> ResultCache:
    """mteb's files lie in `results/<organization>__<model>/<revision>`, as in the leaderboard's repository."""
    import mteb

    return mteb.ResultCache(output / OWN_RESULTS if chosen.is_local else output)
