"""Exported folders to the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


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
    """Asked before the export: a wrong name should not cost its time."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"`--push-to {repository}` cannot be a repository's name: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"`--push-to {repository}` must name its owner: `owner/name`.")


def push(folder: Path, planned: Push, token: str | None = None) -> str:
    """Create the repository if there is none, and upload the folder in one commit; its address."""
    api = HfApi(token=token)
    try:
        address = api.create_repo(planned.repository, private=planned.private, exist_ok=True)
        api.upload_folder(
            repo_id=planned.repository, folder_path=folder, commit_message="Export of llamafactory-embed"
        )
    except (httpx.HTTPError, OSError) as error:  # of the hub, and of the way to it
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
