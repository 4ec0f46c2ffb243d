"""`llamafactory-embed recipe list`: the recipes that come with this package."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..hparams.suggestion import suggest


PACKAGE = Path(__file__).parents[1]
# Folders whose files are no recipes: launchers and engines.
ENGINE_FOLDERS = ("accelerate", "deepspeed")


@dataclass(frozen=True)
class Example:
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


def list_examples(words: Sequence[str] = ()) -> list[Example]:
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


def read_example(path: Path, root: Path) -> Example:
    """What a recipe is for."""
    text = path.read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.safe_load(text)
    in_header = re.match(r"(?:#.*\n)+", text)
    header = " ".join(line.lstrip("# ") for line in (in_header[0] if in_header else "").splitlines())
    stage = options.get("stage") or ("export" if "export_dir" in options else "eval" if "tasks" in options else "chat")
    model = options.get("model_name_or_path") or options.get("checkpoints") or ""
    return Example(
        path.relative_to(root).with_suffix("").as_posix(),
        stage,
        model if isinstance(model, str) else ", ".join(map(str, model)),
        first_sentence(header),
        path,
    )


def first_sentence(text: str) -> str:
    """Up to the first full stop or colon that ends a clause."""
    found = re.match(r"(.+?[^A-Z])(?:[.:](?=\s+[^a-z\s])|[.:]?$|\s{2,})", " ".join(text.split(" ")) + " ")
    return (found[1] if found else text).strip()


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


def format_examples(examples: Sequence[Example], as_json: bool) -> str:
    """A table, or JSON."""
    if as_json:
        rows = [asdict(each) | {"path": str(each.path)} for each in examples]
        return json.dumps(rows, indent=2, ensure_ascii=False)
    widths = [max((len(getattr(each, name)) for each in examples), default=0) for name in ("name", "stage", "model")]
    return "\n".join(
        f"{each.name:<{widths[0]}}  {each.stage:<{widths[1]}}  {each.model:<{widths[2]}}  {each.purpose}"
        for each in examples
    )
