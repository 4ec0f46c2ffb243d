"""Options of `llamafactory-embed eval`: from the command line, an evaluation recipe, or a training recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.prompts import parse_template
from ..hparams.embedding import PRECISIONS
from ..hparams.option import make_options, option
from ..hparams.source import SourceOptions
from ..hparams.suggestion import suggest


TRAINING_RESULTS = "mteb"  # the folder of results in a training recipe's `output_dir`


@dataclass(frozen=True)
class EvaluationOptions(SourceOptions):
    """What is judged, on what, and how."""

    checkpoints: list[str] = option(
        [], "Checkpoints of this package or published ones: folders, or names on the hub, also as name@revision."
    )
    tasks: list[str] = option(
        [],
        "Groups, tasks or benchmarks of mteb, names from `dataset_info.json`, or paths of local data.",
        metavar="TASK",
    )
    output: str = option("mteb_results", "Folder of the results.", metavar="FOLDER")
    baseline: list[str] | None = option(
        None,
        "Baselines on the same data: bm25, tfidf, minilm, or another checkpoint.",
        metavar="NAME",
    )
    devices: list[str] | None = option(
        None,
        "Devices for embedding, one process each, such as cuda:0 cuda:1; empty: the GPU if there is one, in-process.",
        metavar="DEVICE",
    )
    dimensions: list[int] | None = option(
        None,
        "Sizes to which a Matryoshka model's embeddings are cut, a column each; empty: the full size.",
        metavar="SIZE",
    )
    precisions: list[str] | None = option(
        None,
        "How vectors are stored, a column each: float32, float16, int8, uint8, binary, ubinary; empty: float32.",
        metavar="PRECISION",
    )
    rescore_multiplier: int = option(
        4,
        "Of documents in bits, how many times as many are found by bits as are then ranked by the float query; 0: "
        "bits alone rank.",
        minimum=0,
    )
    prompts: dict[str, str] | None = option(
        None,
        "Instructions by task, type of task, or query / document; `@name` is the instruction of that training task.",
        metavar="KEY=TEXT",
    )
    default_prompts: bool = option(True, "Use mteb's instructions for its own tasks where no other applies.")
    text_max_length: int | None = option(
        None, "Most tokens of any text, without its template and instruction; empty: no such limit.", minimum=1
    )
    long_documents: Literal["truncate", "chunk"] = option(
        "truncate", "Cut a document at the trained length (truncate), or search all of its parts (chunk)."
    )
    index: str = option(
        "exact", "Index of a corpus: exact, or a FAISS factory string such as IVF1024,Flat.", metavar="INDEX"
    )
    top_k: int | None = option(
        None, "Documents that a checkpoint ranks for a query; empty: as many as the task asks for (1000).", minimum=1
    )
    predictions: str | None = option(
        None, "Folder for the ranked documents, as TREC run files; empty: they are not kept.", metavar="FOLDER"
    )
    languages: list[str] | None = option(
        None, "Languages of multilingual tasks, as three letters (eng, deu); empty: all.", metavar="LANGUAGE"
    )
    dataset_dir: str = option(
        "data", "Folder of `dataset_info.json`, for tasks named as in a recipe.", metavar="FOLDER"
    )
    names: list[str] | None = option(
        None, "Names of the checkpoints in the results, organization/model as the leaderboard asks.", metavar="NAME"
    )
    vectors: str | None = option(
        None, "Folder that keeps embeddings between runs; empty: `vectors` in the output folder.", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        for name in ("checkpoints", "tasks"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty: name at least one.")
        if self.names is not None and len(self.names) != len(self.checkpoints):
            raise ValueError(f"`names` has {len(self.names)} names for {len(self.checkpoints)} checkpoints.")
        for name in self.names or ():
            if name.count("/") != 1:
                raise ValueError(f"`names: {name}` must be organization/model, as the leaderboard wants it.")
        for name in ("query_template", "document_template"):
            if getattr(self, name) is not None:
                parse_template(getattr(self, name), name)
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise ValueError(
                    f"`precisions: {precision}` must be one of {', '.join(PRECISIONS)}{suggest(precision, PRECISIONS)}"
                )
        if self.text_max_length is not None and self.long_documents == "chunk":
            raise ValueError(
                "`text_max_length` cuts the documents that `long_documents: chunk` reads whole: set only one of them."
            )


def make_evaluation_options(values: dict[str, Any], where: str) -> EvaluationOptions:
    """Options from a recipe or the command line; `where` says in errors where they were written."""
    fields = {each.name: each for each in dataclasses.fields(EvaluationOptions)}
    for name in values:
        if name not in fields:
            raise ValueError(f"{where}: unknown option `{name}`{suggest(name, fields)}")
    defaults = {
        name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for name, each in fields.items()
    }
    lists = (
        "checkpoints", "tasks", "baseline", "devices", "dimensions", "precisions", "languages", "names", "adapters"
    )  # fmt: skip
    given = {
        name: [value] if name in lists and isinstance(value, (str, int)) else value for name, value in values.items()
    }
    prompts = given.get("prompts")
    if prompts is not None and not (
        isinstance(prompts, dict) and all(isinstance(text, str) for pair in prompts.items() for text in pair)
    ):
        raise ValueError(f"{where}: `prompts` must map keys to texts.")
    return make_options(EvaluationOptions, defaults | given)


def options_of(values: dict[str, Any], recipe: Path | None) -> EvaluationOptions:
    """Options from the command line, over those of a recipe."""
    from_recipe = {} if recipe is None else read_recipe(recipe)
    where = "eval" if recipe is None else str(recipe)
    return make_evaluation_options(from_recipe | values, where)


def read_recipe(path: Path) -> dict[str, Any]:
    """Options of an evaluation. A training recipe, recognised by its `stage`, is evaluated on its `eval_tasks`: the
    checkpoint is its `output_dir`."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if not path.is_file():
        raise ValueError(f"There is no recipe {path}.")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map options to values.")
    if "stage" not in values:
        return {str(name): value for name, value in values.items()}
    options: dict[str, Any] = {}
    if "output_dir" in values:
        options["checkpoints"] = [values["output_dir"]]
        options["output"] = str(Path(values["output_dir"], TRAINING_RESULTS))
    if "eval_tasks" in values:
        options["tasks"] = values["eval_tasks"]
    if "dataset_dir" in values:
        options["dataset_dir"] = values["dataset_dir"]
    return options
