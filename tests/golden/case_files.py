"""Find the golden cases: numbers that the original projects produced, see tests/golden/cases/README*.md."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).with_name("cases"))


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


def golden_cases(kind: str) -> Any:
    """Parametrize a test with every case at or below `kind`, for instance `ddm/loss` or `tdro/update`."""
    folders = sorted(path.parent for path in (GOLDEN_DIR / kind).rglob("case.json"))
    cases = [GoldenCase(folder) for folder in folders]
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])
