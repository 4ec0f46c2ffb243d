"""What a hub reads at the top of a model card. A value that is not known is left out, and so is what names a folder of
the machine that trained."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from ..files import write_text
from ..foreign import parse_yaml, read_foreign_text
from ..hparams.secrets import secrets_of, without_secrets


CARD_NAME = "README.md"
TAGS = ("llama-factory", "llamafactory-embed")

Relation = Literal["adapter", "finetune"]

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# Of tasks as hubs know them, their names for people.
_TASK_NAMES = {
    "information-retrieval": "Information Retrieval",
    "fill-mask": "Masked Language Modeling",
    "text-generation": "Text Generation",
    "token-classification": "Token Classification",
}


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one data set."""

    task: str
    dataset: str
    """Its name on the hub, or in the registry of data sets."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CardHeader:
    """The front matter of a card. None and empty values are left out."""

    library: str
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    base_model: str | None = None
    relation: Relation | None = None
    license: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    evaluations: Sequence[Evaluation] = field(default_factory=tuple)

    def render(self, model_name: str) -> str:
        """The YAML between the card's first two lines of dashes."""
        base = hub_name(self.base_model)
        relation: dict[str, Any] = {"base_model_relation": self.relation} if base and self.relation else {}
        data = ModelCardData(
            library_name=self.library,
            pipeline_tag=self.pipeline_tag,
            license=self.license,
            language=list(self.languages) or None,
            base_model=base,
            datasets=list(self.datasets) or None,
            tags=list(dict.fromkeys([*self.tags, *TAGS])),
            model_name=model_name if self.evaluations else None,  # of the model-index
            eval_results=eval_results(self.evaluations) or None,
            **relation,
        )
        return data.to_yaml().strip()


def eval_results(evaluations: Iterable[Evaluation]) -> list[EvalResult]:
    """One entry of `model-index` for each number."""
    return [
        EvalResult(
            task_type=each.task,
            task_name=_TASK_NAMES.get(each.task),
            dataset_type=each.dataset,
            dataset_name=each.dataset,
            metric_type=metric.replace("@", "_at_"),
            metric_name=metric,
            metric_value=round(value, 5),
        )
        for each in evaluations
        for metric, value in each.metrics.items()
    ]


def evaluations_by_dataset(task: str, names: Sequence[str], metrics: Mapping[str, float]) -> list[Evaluation]:
    """Metrics `eval_<data set>_<metric>`, or `eval_<metric>` where there is one data set, by their data sets. Means
    over data sets belong to none, and are left out."""
    given = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    if len(names) == 1 and not any(name.startswith(f"{names[0]}_") for name in given):
        return [Evaluation(task, names[0], given)] if given else []
    by_dataset: dict[str, dict[str, float]] = {}
    for metric, value in given.items():
        owners = [name for name in names if metric.startswith(f"{name}_")]
        if owners:
            owner = max(owners, key=len)  # `a_b_loss` belongs to `a_b`, not to `a`
            by_dataset.setdefault(owner, {})[metric.removeprefix(f"{owner}_")] = value
    return [Evaluation(task, name, found) for name, found in by_dataset.items()]


def write_card_file(folder: str | Path, name: str, header: CardHeader, lines: Sequence[str]) -> None:
    """Write `README.md`: the header, a title, and the lines, out of which secrets are taken."""
    page = "\n".join(["---", header.render(name), "---", "", f"# {name}", "", *lines]).rstrip("\n") + "\n"
    write_text(Path(folder) / CARD_NAME, without_secrets(page, secrets_of()))


def read_card_header(folder: str | Path) -> dict[str, Any]:
    """The front matter of the card in a folder; empty where there is none."""
    path = Path(folder) / CARD_NAME
    found = _FRONT_MATTER.search(read_foreign_text(path)) if path.is_file() else None
    if found is None:
        return {}
    try:
        header = parse_yaml(found[1])
    except ValueError as error:
        raise ValueError(f"{path} begins with something that is no YAML: mend it, or remove the file.") from error
    return header if isinstance(header, dict) else {}


def read_evaluations(folder: str | Path) -> list[Evaluation]:
    """What the `model-index` of the card in a folder says."""
    index = read_card_header(folder).get("model-index")
    if not index:
        return []
    try:
        _, results = model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(folder) / CARD_NAME}: its `model-index` is not in the hub's format.") from error
    return [
        Evaluation(each.task_type, each.dataset_name, {each.metric_name or each.metric_type: each.metric_value})
        for each in results
    ]


def hub_name(name: str | None) -> str | None:
    """A model's or data set's name on the hub; None where it is a folder of this machine, or no such name."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def shown_name(name: str | Path) -> str:
    """What a card calls a model: its name on the hub, or the last part of its folder, never a path of this machine."""
    return hub_name(str(name)) or Path(name).name
