"""Which checkpoints of a run are whole: training goes on from no other.

A checkpoint of this package lists its files (`contents.json`). One that the host's trainer wrote does not: the file
that it writes last has to be there, and what it wrote before must not end in the middle.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import write_json
from ..foreign import BAD_VALUES, is_plain_name, parse_foreign_json, read_foreign_json, read_json_object


CONTENTS_NAME = "contents.json"
STATE_NAME = "trainer_state.json"  # the last file that the Trainer writes into a checkpoint

# Beside the checkpoints of a run, and not taken for one of them: what is being written or removed. Pushes to a hub
# leave out names that begin with `_`.
UNFINISHED_NAME = "_unfinished"

# What people may edit in a checkpoint without harm to the training.
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt", ".csv", ".jinja")

SHARD_LISTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
WEIGHTS = ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp*", "global_step*")


def numbered_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run, in the order of their steps."""
    folders = [path for path in Path(run).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in folders if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_whole_checkpoint(run: str | Path) -> tuple[Path | None, list[str]]:
    """The last whole checkpoint of a run, and a sentence about each newer one that is not."""
    skipped: list[str] = []
    for checkpoint in reversed(numbered_checkpoints(run)):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint} {problem}.")
    return None, skipped


def write_contents(checkpoint: Path, **more: Any) -> None:
    """List the files of a complete checkpoint that training goes on from, and what else is to be remembered with
    them."""
    files = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and (path.suffix not in TEXTS or path.name == STATE_NAME)
    }
    write_json(checkpoint / CONTENTS_NAME, {"files": files, **more})


def read_contents(checkpoint: Path) -> dict[str, Any] | None:
    """What `write_contents` wrote; None in checkpoints of others."""
    path = checkpoint / CONTENTS_NAME
    if not path.is_file():
        return None
    contents = read_json_object(path, "it is damaged.")
    files = contents.get("files")
    if not isinstance(files, dict) or not all(isinstance(size, int) for size in files.values()):
        raise ValueError(f"{path} is damaged: it lists no files with their sizes.")
    return contents


def find_damage(checkpoint: Path) -> str | None:
    """What keeps training from going on from a checkpoint, in words that follow its name; None where it is whole."""
    try:
        contents = read_contents(checkpoint)
    except ValueError:
        return f"has a {CONTENTS_NAME} that cannot be read"
    if contents is None:
        return next(_find_damage_of_others(checkpoint), None)
    for name, size in contents["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"has no {name}"
        if path.stat().st_size != size:
            return f"has a {name} of {path.stat().st_size} bytes, which was written with {size}"
    return None


def find_changed_bytes(checkpoint: Path) -> str | None:
    """As `find_damage`, for states of the training whose length is right and whose check sums are not: torch itself
    reads them without a word. Weights (safetensors) have no check sums."""
    for path in sorted(each for pattern in ("*.pt", "*.pth") for each in checkpoint.rglob(pattern)):
        if not zipfile.is_zipfile(path):
            continue  # the format of torch before 1.6
        try:
            with zipfile.ZipFile(path) as archive:
                is_sound = archive.testzip() is None
        except zipfile.BadZipFile:
            is_sound = False
        if not is_sound:
            return f"has a {path.relative_to(checkpoint)} whose bytes have changed since it was written"
    return None


def _find_damage_of_others(checkpoint: Path) -> Iterator[str]:
    """What is missing or cut off, as far as that can be seen without a list."""
    if not (checkpoint / STATE_NAME).is_file():
        yield f"has no {STATE_NAME}: its writing was interrupted"
    elif not _is_json(checkpoint / STATE_NAME):
        yield f"has a {STATE_NAME} that ends too early"
    if not any(_all(checkpoint, WEIGHTS)):
        yield "has no weights"
    has_states = any(_all(checkpoint, ("scheduler.pt", "rng_state*.pth")))
    if has_states and not any(_all(checkpoint, OPTIMIZERS)):  # without either, `save_only_model` left them out
        yield "has no state of the optimizer"
    for name in SHARD_LISTS:
        path = checkpoint / name
        if path.is_file() and not _is_json(path):
            yield f"has a {name} that ends too early"
        elif path.is_file():
            index = read_foreign_json(path)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(shards, dict) or not all(map(is_plain_name, shards.values())):
                yield f"has a {name} that lists no shards"
            else:
                yield from (
                    f"has no {each}" for each in sorted({*shards.values()}) if not (checkpoint / each).is_file()
                )
    for path in sorted(_all(checkpoint, ("*.safetensors", "*.pt", "*.pth", "*.bin"))):
        if _is_cut_off(path):
            yield f"has a {path.name} that ends too early"


def _all(checkpoint: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in checkpoint.glob(pattern))


def _is_json(path: Path) -> bool:
    try:
        read_foreign_json(path)
    except ValueError:
        return False
    return True


def _is_cut_off(path: Path) -> bool:
    """Whether a file of tensors is shorter than it says of itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix != ".safetensors":  # torch's files are zip archives, whose table of contents comes last
            return size == 0 or (start[:2] == b"PK" and not zipfile.is_zipfile(path))
        length = int.from_bytes(start, "little")
        if size < 8 + length:
            return True
        try:
            header = parse_foreign_json(file.read(length))
            ends = [int(each["data_offsets"][1]) for name, each in header.items() if name != "__metadata__"]
        except BAD_VALUES:
            return True
    return size < 8 + length + max(ends, default=0)
