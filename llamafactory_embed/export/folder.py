"""The exported folder: it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import put_in_place
from ..loading.llm2vec_adapters import CONFIG_FILE
from ..model.embedding_config import CONFIG_NAME
from ..model.quantization import QuantizationRanges


@contextmanager
def new_folder(target: str | Path, checkpoint: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside the target, which takes the target's name when the block ends well and is removed
    otherwise.

    A target that exists is replaced only if `overwrite` says so and it is an earlier export.
    """
    target = Path(os.path.abspath(target))
    check_target(target, Path(os.path.abspath(checkpoint)), overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.exporting-"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes folders that only their owner can read
        put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path, checkpoint: Path, overwrite: bool) -> None:
    """Refuse a target whose content would be lost."""
    if target == checkpoint or checkpoint.is_relative_to(target):
        raise ValueError(f"The export would replace the checkpoint {checkpoint} itself: name another folder.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{target} exists: name a new folder, or replace an earlier export with `--overwrite`.")
    if not any((target / name).is_file() for name in (CONFIG_NAME, CONFIG_FILE)):
        raise ValueError(f"{target} is not an earlier export: `--overwrite` leaves it alone, name another folder.")


def copy_ranges(checkpoint: str | Path, folder: Path) -> None:
    """The ranges of int8 vectors, if the checkpoint was calibrated: `Encoder` looks for them in an export, too."""
    found = QuantizationRanges.find([checkpoint])
    if found is not None:
        found.save(folder)
