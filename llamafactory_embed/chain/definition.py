"""What a chain's file says: steps that run in order, and the folders that earlier steps leave to later ones.

Example::

    output_dir: saves/my_chain
    steps:
      - name: pairs
        train: examples/chain/quickstart/2_pairs.yaml
        options: {model_name_or_path: $diffusion}    # the folder of the step `diffusion`
      - name: merged
        merge: [$pairs, $triplets]
        options: {method: slerp}
      - name: scores
        eval: [$merged]
        options: {tasks: [wordnet_gloss_to_noun_heldout]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import digest
from ..foreign import read_yaml
from ..hparams.suggestion import suggest


KINDS = ("train", "merge", "eval", "export")
REFERENCE = re.compile(r"\$([A-Za-z_]\w*)")
NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class ChainStep:
    """One step; its references are resolved: `$name` has become the folder of that step."""

    number: int
    name: str
    kind: str
    subjects: tuple[str, ...]
    """The recipe of a training; the checkpoints of the others."""
    options: Mapping[str, Any]
    output: Path
    needs: tuple[str, ...] = ()
    """The steps that it takes something from."""

    @property
    def fingerprint(self) -> str:
        """What the step is made of, but for the steps before it: a digest."""
        recipe = Path(self.subjects[0]).read_bytes() if self.kind == "train" else b""
        own = json.dumps([self.kind, self.subjects, self.options], sort_keys=True, default=str)
        return digest(own, recipe).hex()


@dataclass(frozen=True)
class Chain:
    """The steps of a file."""

    source: Path
    output_dir: Path
    steps: tuple[ChainStep, ...] = field(default=())


def read_chain(path: Path) -> Chain:
    """Read and check a chain's file; nothing runs before all of it is understood."""
    if not path.is_file():
        raise ValueError(f"There is no chain {path}.")
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    has_steps = isinstance(values, dict) and isinstance(values.get("steps"), list) and values["steps"]
    if not has_steps or not isinstance(values.get("output_dir"), str):
        raise ValueError(f"{path} must hold `output_dir` and a list `steps`.")
    for key in values:
        if key not in ("output_dir", "steps"):
            raise ValueError(f"{path}: unknown key `{key}`{suggest(key, ('output_dir', 'steps'))}")
    output_dir = Path(values["output_dir"])
    steps: list[ChainStep] = []
    for number, entry in enumerate(values["steps"], start=1):
        steps.append(_read_step(f"{path}, step {number}", number, entry, output_dir, steps))
    return Chain(path, output_dir, tuple(steps))


def _read_step(where: str, number: int, entry: Any, output_dir: Path, before: Sequence[ChainStep]) -> ChainStep:
    if not isinstance(entry, dict) or not _is_name(entry.get("name")):
        raise ValueError(f"{where}: a step needs a `name` of letters, digits and `_`.")
    kinds = [key for key in entry if key not in ("name", "options")]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        odd = next((key for key in kinds if key not in KINDS), None)
        hint = "" if odd is None else suggest(odd, KINDS)
        raise ValueError(f"{where} (`{entry['name']}`): one of {', '.join(KINDS)} says what the step does{hint}")
    kind, name = kinds[0], entry["name"]
    if any(step.name == name for step in before):
        raise ValueError(f"{where}: the name `{name}` is taken by an earlier step.")
    options = entry.get("options") or {}
    if not isinstance(options, dict) or not all(map(_is_name, options)):
        raise ValueError(f"{where}: `options` must map names to values; names are of letters, digits and `_`.")
    reserved = next((key for key in ("output_dir", "output", "folder") if key in options), None)
    if reserved is not None:
        raise ValueError(f"{where}: the chain itself chooses `{reserved}`, below {output_dir}: leave it out.")

    folders = {step.name: str(step.output) for step in before}
    needs: list[str] = []
    subjects = _resolve(entry[kind], folders, needs, where)
    subjects = tuple(map(str, subjects)) if isinstance(subjects, list) else (str(subjects),)
    if kind == "train" and not Path(subjects[0]).is_file():
        raise ValueError(f"{where}: there is no recipe {subjects[0]}.")
    resolved = _resolve(options, folders, needs, where)
    output = output_dir / f"{number}_{name}"
    return ChainStep(number, name, kind, subjects, resolved, output, tuple(dict.fromkeys(needs)))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _resolve(value: Any, folders: Mapping[str, str], needs: list[str], where: str) -> Any:
    """The value with folders for references; `needs` learns which."""
    if isinstance(value, dict):
        return {key: _resolve(each, folders, needs, where) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolve(each, folders, needs, where) for each in value]
    if not isinstance(value, str):
        return value

    def folder(found: re.Match[str]) -> str:
        name = found[1]
        if name not in folders:
            raise ValueError(f"{where}: no earlier step is named `{name}`{suggest(name, folders)}")
        needs.append(name)
        return folders[name]

    return REFERENCE.sub(folder, value)
