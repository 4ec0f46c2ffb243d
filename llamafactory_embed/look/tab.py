"""LLaMA Board's tab Embeddings: a base model and a trained one on the same texts, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from matplotlib.figure import Figure

from ..board.tabs import BoardPage, shown_as_error, with_words
from ..board.words import say
from .comparison import Projection, Side, has_umap, look_at
from .material import chosen_tasks, read_pasted_lines, retrieval_sets, typed_task
from .models import newest_checkpoint, open_base, open_trained, runs_below
from .pictures import draw_map, draw_similarities
from .tables import metrics_table, side_by_side


DEPTH = 10  # documents that are shown for a query, and neighbours for a text
AUTO = "auto"
MOST_QUERIES, MOST_DOCUMENTS = 50, 500


@dataclass(frozen=True)
class Looked:
    """What the tab holds after a comparison: the base model's side and the trained one's."""

    sides: tuple[Side, Side]

    def questions(self) -> list[tuple[str, str]]:
        """The queries as choices of a dropdown: what is read, and `number of the task/number of the query`."""
        several = len(self.sides[0].tasks) > 1
        return [
            (f"{each.task.task}: {query}" if several else query, f"{task}/{number}")
            for task, each in enumerate(self.sides[0].tasks)
            for number, query in enumerate(each.task.queries)
        ]


def create_embeddings_tab(page: BoardPage) -> dict[str, Block]:
    """Build the tab."""
    parts: dict[str, Any] = {}

    def part(name: str, create: Callable[..., Any], **settings: Any) -> Any:
        parts[f"look/{name}"] = with_words(create, f"look/{name}", elem_id=f"look-{name}", **settings)
        return parts[f"look/{name}"]

    with part("tab", gr.Tab):
        with gr.Row():
            part("base", gr.Textbox, scale=2)
            part("trained", gr.Dropdown, value="", choices=[""], allow_custom_value=True, scale=2)
            part("device", gr.Dropdown, value=AUTO, choices=[AUTO, "cpu"], scale=1)
        with gr.Row():
            part("sets", gr.Dropdown, multiselect=True, allow_custom_value=True, scale=3)
            part("most_queries", gr.Number, value=MOST_QUERIES, minimum=1, precision=0, scale=1)
            part("most_documents", gr.Number, value=MOST_DOCUMENTS, minimum=1, precision=0, scale=1)
        with part("typed", gr.Accordion, open=False):
            part("instruction", gr.Textbox)
            with gr.Row():
                for name in ("queries", "documents"):
                    with gr.Column():
                        part(name, gr.Textbox, lines=6, max_lines=12)
                        part(f"upload_{name}", gr.UploadButton, file_types=["text"], size="sm")
        part("compare", gr.Button, variant="primary")
        looked, metrics = gr.State(), gr.HTML(elem_id="look-metrics")
        with gr.Tabs():
            with part("rankings", gr.Tab):
                part("query", gr.Dropdown, choices=[])
                rankings = gr.HTML(elem_id="look-ranked")
            with part("neighbours", gr.Tab):
                with gr.Row(equal_height=True):
                    part("text", gr.Textbox, scale=4)
                    part("find", gr.Button, scale=1)
                nearest = gr.HTML(elem_id="look-nearest")
            with part("map", gr.Tab):
                part("projection", gr.Dropdown, value="PCA", choices=["PCA", *(["UMAP"] if has_umap() else [])])
                map_plot = gr.Plot(show_label=False, elem_id="look-map-plot")
            with part("similarities", gr.Tab):
                similarities = gr.Plot(show_label=False, elem_id="look-similarities-plot")

    _connect_texts(page, parts)
    _connect_results(page, parts, looked, metrics, rankings, nearest, map_plot, similarities)
    return parts


def _connect_texts(page: BoardPage, parts: dict[str, Any]) -> None:
    """What can be chosen is looked up when a list is opened: runs and data sets come and go."""

    def list_runs(*run: str) -> dict[str, Any]:
        return gr.update(choices=["", *runs_below(Path(page.run_folder(*run)).parent)])

    def list_sets(dataset_dir: str) -> dict[str, Any]:
        return gr.update(choices=retrieval_sets(dataset_dir))

    parts["look/trained"].focus(list_runs, page.run_widgets(), [parts["look/trained"]], queue=False)
    parts["look/sets"].focus(list_sets, [page.dataset_dir], [parts["look/sets"]], queue=False)
    for name in ("queries", "documents"):
        upload: gr.UploadButton = parts[f"look/upload_{name}"]
        upload.upload(_refusing(read_pasted_lines), [upload], [parts[f"look/{name}"]])


def _connect_results(
    page: BoardPage,
    parts: dict[str, Any],
    looked: gr.State,
    metrics: gr.HTML,
    rankings: gr.HTML,
    nearest: gr.HTML,
    map_plot: gr.Plot,
    similarities: gr.Plot,
) -> None:
    """Compare once, then draw what is asked for from what was embedded."""
    choices = [
        parts[f"look/{name}"] for name in ("base", "trained", "device", "sets", "most_queries", "most_documents")
    ]
    typed = [parts[f"look/{name}"] for name in ("queries", "documents", "instruction")]
    query, projection, text = (parts[f"look/{name}"] for name in ("query", "projection", "text"))

    def compare(*values: Any) -> tuple[Any, ...]:
        seen = look_at_choices(page.run_folder, *values)
        questions = seen.questions()
        return seen, show_metrics(seen), gr.update(choices=questions, value=questions[0][1])

    inputs: list[Component] = [*choices, *typed, page.model_path, page.dataset_dir, *page.run_widgets()]
    done = parts["look/compare"].click(_refusing(compare), inputs, [looked, metrics, query])
    for event in (done.success, query.input):
        event(show_rankings, [looked, query, page.language], [rankings])
        event(show_similarities, [looked, query], [similarities])
    for event in (done.success, projection.change):
        event(_refusing(show_map), [looked, projection, page.language], [map_plot])
    for event in (parts["look/find"].click, text.submit):
        event(_refusing(show_nearest), [looked, text, page.language], [nearest])


def look_at_choices(
    run_folder: Callable[..., str],
    base: str,
    trained: str,
    device: str,
    sets: list[str],
    most_queries: int | None,
    most_documents: int | None,
    queries: str,
    documents: str,
    instruction: str,
    model_path: str,
    dataset_dir: str,
    *run: str,
) -> Looked:
    """Open both models and embed the texts."""
    texts = typed_task(queries, documents, instruction)
    tasks = ([] if texts is None else [texts]) + chosen_tasks(
        sets or [], dataset_dir, int(most_queries or MOST_QUERIES), int(most_documents or MOST_DOCUMENTS)
    )
    if not tasks:
        raise ValueError("There is nothing to look at: choose an evaluation set, or type queries and documents.")
    where = None if device == AUTO else device
    checkpoint = newest_checkpoint(trained or run_folder(*run))
    after = open_trained(checkpoint, where)
    before = open_base(base or model_path, after, where)
    name = base or model_path or after.config.base_model or ""
    return Looked((look_at(name, before, tasks), look_at(str(checkpoint), after, tasks)))


def show_metrics(looked: Looked) -> str:
    """Retrieval of both models on each task that has answers."""
    tasks = [each.task.task for each in looked.sides[0].tasks]
    return metrics_table(
        {task: {side.name: side.tasks[number].metrics() for side in looked.sides} for number, task in enumerate(tasks)}
    )


def show_rankings(looked: Looked | None, place: str, language: str) -> str:
    """Both rankings of the documents for the chosen query."""
    if looked is None:
        return ""
    task, query = map(int, place.split("/"))
    columns = {side.name: side.tasks[task].ranking(query, DEPTH) for side in looked.sides}
    return side_by_side(columns, say("look.nothing", language))


def show_similarities(looked: Looked | None, place: str) -> Figure | None:
    """The heat map of the task of the chosen query."""
    return None if looked is None else draw_similarities(looked.sides, int(place.split("/")[0]))


def show_map(looked: Looked | None, projection: Projection, language: str) -> Figure | None:
    """The map of all texts."""
    if looked is None:
        return None
    return draw_map(looked.sides, projection, (say("look.queries", language), say("look.documents", language)))


def show_nearest(looked: Looked | None, text: str, language: str) -> str:
    """What is nearest to a text among all texts."""
    if looked is None or not text.strip():
        raise ValueError("Compare two models first, then type a text whose neighbours are to be found.")
    columns = {side.name: side.neighbours(text.strip(), DEPTH) for side in looked.sides}
    return side_by_side(columns, say("look.nothing", language))


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with users' errors as the page shows them."""

    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as problem:
            raise shown_as_error(problem) from problem

    call.__name__ = function.__name__
    return call
