"""The exported folder: it appears whole or not at all, and can be pushed to the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..loading.llm2vec_adapters import CONFIG_FILE
from ..model.embedding_config import CONFIG_NAME


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
        if target.exists():
            replaced = temporary.with_name(f"{temporary.name}-replaced")
            os.rename(target, replaced)
            os.rename(temporary, target)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, target)
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


@dataclass(frozen=True)
class Push:
    """What goes to the hub."""

    repository: str
    private: bool
    files: dict[str, int]
    """Path in the repository → bytes."""

    def describe(self) -> str:
        """One line a file, and the sum."""
        width = max(map(len, self.files))
        lines = [f"  {path:<{width}}  {format_size(size):>9}" for path, size in self.files.items()]
        visibility = "private" if self.private else "public"
        total = format_size(sum(self.files.values()))
        return "\n".join([f"{self.repository} ({visibility}): {len(self.files)} files, {total}", *lines])


def plan_push(folder: Path, repository: str, private: bool) -> Push:
    """What a push would upload; nothing is sent."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return Push(repository, private, files)


def check_repository(repository: str) -> None:
    """Called before the export: a wrong name should not cost its time."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"`--push-to {repository}` cannot be a repository's name: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"`--push-to {repository}` must name its owner: `owner/name`.")


def push(folder: Path, planned: Push, token: str | None = None) -> str:
    """Create the repository if there is none, and upload the folder in one commit; the repository's address."""
    api = HfApi(token=token)
    try:
        address = api.create_repo(planned.repository, private=planned.private, exist_ok=True)
        api.upload_folder(
            repo_id=planned.repository, folder_path=folder, commit_message="Export of llamafactory-embed"
        )
    except (HTTPError, OSError) as error:  # from the hub, or from the network, in the HTTP library that it uses
        cause = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"The export is complete in {folder}, but could not be pushed to {planned.repository}: {cause}"
        ) from error
    return str(address)


def format_size(size: int) -> str:
    """Bytes as people read them."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
