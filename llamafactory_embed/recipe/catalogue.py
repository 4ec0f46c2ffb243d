"""`llamafactory-embed recipe list`: the recipes that come with this package."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..hparams.suggestion import suggest


PACKAGE = Path(__file__).parents[1]
# A hundred files are read at once: by libyaml, where PyYAML has it.
_FASTEST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Folders whose files are no recipes: launchers and engines.
ENGINE_FOLDERS = ("accelerate", "deepspeed")


@dataclass(frozen=True)
class ListedRecipe:
    """A recipe, in one line."""

    name: str
    """Its path below `examples/`, without the ending."""

    stage: str
    """The stage; `eval`, `export` or `chat` for recipes of other commands."""

    model: str
    purpose: str
    """The first sentence of its header."""

    path: Path


def find_examples() -> Path:
    """The folder `examples/` of the checkout, or of the installed package."""
    places = (PACKAGE.parent / "examples", PACKAGE / "materials" / "files" / "examples")
    for place in places:
        if (place / "quickstart").is_dir():
            return place
    raise ValueError(f"This installation has no recipes: neither {places[0]} nor {places[1]} holds them.")


def list_examples(words: Sequence[str] = ()) -> list[ListedRecipe]:
    """All recipes in which each of the words stands: in name, stage, model or purpose."""
    root = find_examples()
    paths = [path for path in sorted(root.rglob("*.yaml")) if path.relative_to(root).parts[0] not in ENGINE_FOLDERS]
    examples = [read_example(path, root) for path in paths]
    wanted = [word.lower() for word in words]
    return [
        each
        for each in examples
        if all(word in f"{each.name} {each.stage} {each.model} {each.purpose}".lower() for word in wanted)
    ]


def read_example(path: Path, root: Path) -> ListedRecipe:
    """What a recipe is for."""
    text = path.read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.load(text, Loader=_FASTEST)
    header = re.match(r"(?:#.*\n)*", text)
    stage = options.get("stage") or ("export" if "export_dir" in options else "eval" if "tasks" in options else "chat")
    model = options.get("model_name_or_path") or options.get("checkpoints") or ""
    return ListedRecipe(
        path.relative_to(root).with_suffix("").as_posix(),
        stage,
        model if isinstance(model, str) else str(model[0]) + ", …" * (len(model) > 1),
        first_sentence(header[0] if header else ""),
        path,
    )


def first_sentence(header: str) -> str:
    """The first sentence of a header whose lines begin with `#`; an empty line ends it, too."""
    lines = [line.lstrip("#").strip() for line in header.splitlines()]
    paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
    return re.split(r"(?<=[a-z)])\.\s+(?=[A-Z])", paragraph, maxsplit=1)[0].rstrip(".")


def find_recipe(name: str) -> Path:
    """The path of a recipe that is named as `recipe list` does, by its last word, or by a path."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    examples = list_examples()
    exact = [each for each in examples if each.name == name]
    found = exact or [each for each in examples if each.name.rpartition("/")[2] == name]
    if len(found) == 1:
        return found[0].path
    if found:
        raise ValueError(f"Several recipes are called {name}: {', '.join(each.name for each in found)}.")
    names = [each.name for each in examples] + [each.name.rpartition("/")[2] for each in examples]
    raise ValueError(f"There is no recipe {name}{suggest(name, names)} `llamafactory-embed recipe list` names all.")


def format_examples(examples: Sequence[ListedRecipe], as_json: bool) -> str:
    """A table, or JSON."""
    if as_json:
        rows = [asdict(each) | {"path": str(each.path)} for each in examples]
        return json.dumps(rows, indent=2, ensure_ascii=False)
    columns = [(each.name, each.stage, each.model) for each in examples]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines = []
    for example, cells in zip(examples, columns, strict=True):
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, textwrap.shorten(example.purpose, 110, placeholder=" …")]))
    return "\n".join(lines)
