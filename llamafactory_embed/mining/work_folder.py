"""The folder in which mining leaves what it has done, so that it can be interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


STEPS = ("read", "embed", "search", "select")
SETTINGS = "settings.json"


class WorkFolder:
    """A folder for each step. A step is done again when its settings, or those of a step before, are others."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def folder(self, step: str) -> Path:
        """Where a step leaves its files."""
        return self.path / step

    def prepare(self, settings: dict[str, Any]) -> None:
        """Keep the steps that were begun with these settings, remove the others."""
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / STEPS[0]).is_dir():
            raise ValueError(f"`work_folder`: {self.path} holds other files; name an empty or new folder.")
        so_far: dict[str, Any] = {}  # a step's file names the settings of those before, too
        for step in STEPS:
            folder = self.folder(step)
            so_far |= {step: settings[step]}
            written = json.dumps(so_far, indent=1, ensure_ascii=False, sort_keys=True)
            if not (folder / SETTINGS).is_file() or (folder / SETTINGS).read_text("utf-8") != written:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                (folder / SETTINGS).write_text(written, "utf-8")

    def remove(self) -> None:
        """Take away the steps' folders, and the folder itself if nothing else is in it."""
        for step in STEPS:
            shutil.rmtree(self.folder(step), ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
