"""Find the golden cases: numbers that the original projects produced, see tests/golden/cases/README*.md."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest


BUNDLED = Path(__file__).with_name("cases")
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or BUNDLED)


@dataclass(frozen=True)
class GoldenCase:
    """One folder with a `case.json`; its id is the folder's path relative to the golden directory."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.relative_to(GOLDEN_DIR).as_posix()

    @property
    def data(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text(encoding="utf-8"))

    def part(self, name: str) -> Any:
        """A part of the case that others need not have."""
        if name not in self.data:
            nothing_to_compare(name)
        return self.data[name]

    @property
    def model_folder(self) -> Path:
        """Where the weights are: where `weights` points to, or in the case's folder."""
        return self.folder_of(self.data["weights"]).parent if "weights" in self.data else self.folder

    def folder_of(self, relative: str) -> Path:
        """Another folder that this case names, such as the one that holds its weights."""
        return (self.folder / relative).resolve()

    def copy_model(self, destination: Path, source: Path | None = None) -> Path:
        """A copy of the case's model under the file names that `from_pretrained` expects."""
        source = source or self.folder
        destination.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "weights.safetensors", destination / "model.safetensors")
        shutil.copy(source / "config.json", destination / "config.json")
        if (source / "tokenizer").is_dir():
            shutil.copytree(source / "tokenizer", destination, dirs_exist_ok=True)
        return destination


def nothing_to_compare(what: str) -> NoReturn:
    """Skip the test for a case that lacks what it compares; the bundled cases lack nothing."""
    if GOLDEN_DIR == BUNDLED:
        pytest.fail(f"no bundled case holds {what}")
    pytest.skip(f"the case holds no {what}")


def golden_cases(kind: str) -> Any:
    """Parametrize a test with every case at or below `kind`, for instance `ddm/loss` or `tdro/update`."""
    folders = sorted(path.parent for path in (GOLDEN_DIR / kind).rglob("case.json"))
    cases = [GoldenCase(folder) for folder in folders]
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])
