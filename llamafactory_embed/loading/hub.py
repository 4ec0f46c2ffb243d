"""Folders that go to the hub: what would be uploaded, and the upload."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ..model.quantization import RANGES_NAME
from .weights import ADAPTER_CONFIG_NAME


# Files of a checkpoint that `Encoder` or sentence-transformers reads, and the card.
SERVED = (
    *(CONFIG_NAME, RANGES_NAME, ADAPTER_CONFIG_NAME, "config.json", "generation_config.json", "README.md"),
    *("*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "chat_template*", "*.model", "modules.json", "*sentence*transformers.json"),
    *("sentence_bert_config.json", "[0-9]*_*/*", "*.py"),
)


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


def plan_push_of_checkpoint(folder: Path, repository: str, private: bool) -> Push:
    """What a push of a training run's folder would upload: what `Encoder` reads, and the card; no optimizer states,
    logs or recipes. An adapter whose base model is a folder of this machine is refused: nobody else has it."""
    config = EmbeddingConfig.load(folder)
    local = [each for each in (config.base_model, *config.merged_adapters) if each and os.path.exists(each)]
    if local:
        raise ValueError(
            f"{folder} stands on {local[0]}, a folder of this machine that others do not have: push merged weights, "
            "`llamafactory-embed export CHECKPOINT FOLDER --push-to OWNER/NAME`."
        )
    whole = plan_push(folder, repository, private)
    files = {path: size for path, size in whole.files.items() if any(fnmatch(path, each) for each in SERVED)}
    own = {path: size for path, size in files.items() if "/" not in path or path[0].isdigit()}  # no checkpoint-N
    return Push(repository, private, own)


def check_repository(repository: str) -> None:
    """Called before any work: a wrong name should not cost its time."""
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
            repo_id=planned.repository,
            folder_path=folder,
            allow_patterns=list(planned.files),
            commit_message="Upload of llamafactory-embed",
        )
    except (HTTPError, OSError) as error:  # from the hub, or from the network, in the HTTP library that it uses
        cause = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder} is complete, but could not be pushed to {planned.repository}: {cause}") from error
    return str(address)


def format_size(size: int) -> str:
    """Bytes as people read them."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def push_checkpoint(folder: Path, repository: str, private: bool, token: str | None, dry_run: bool) -> Push:
    """Upload the folder of a training run, or with `dry_run` only say what would be uploaded."""
    check_repository(repository)
    planned = plan_push_of_checkpoint(folder, repository, private)
    if not dry_run:
        push(folder, planned, token)
    return planned
