"""A run goes on with the data that it began with: a checkpoint remembers what their files were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.whole_checkpoints import read_contents


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, TrainingArguments


PIECE = 2**20
PIECES = 64  # of a larger file, evenly spread over it: data of terabytes are not read twice


def digests_of_data(data_args: DataArguments, training_args: TrainingArguments) -> dict[str, str]:
    """The local files of `dataset`, by data set and name; in the process that writes checkpoints."""
    if not (training_args.do_train and data_args.dataset and training_args.process_index == 0):
        return {}
    from llamafactory.data.parser import get_dataset_list

    try:
        data_sets = get_dataset_list(data_args.dataset, data_args.dataset_dir)
    except (ValueError, OSError):
        return {}  # the stage reads them, and says what is wrong
    names = data_args.dataset if isinstance(data_args.dataset, list) else data_args.dataset.split(",")
    digests: dict[str, str] = {}
    for name, data_set in zip(names, data_sets, strict=True):
        place = Path(data_args.dataset_dir, data_set.dataset_name) if data_set.load_from == "file" else None
        if place is None or not place.exists():
            continue
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        digests |= {f"{name.strip()}: {path.relative_to(place.parent).as_posix()}": digest_of(path) for path in files}
    return digests


def digest_of(path: Path) -> str:
    """Of a file's length and content; of a large file's length and some of its content."""
    size = path.stat().st_size
    state = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= PIECE * PIECES:
            state.update(file.read())
        else:
            for number in range(PIECES):
                file.seek(number * (size - PIECE) // (PIECES - 1))
                state.update(file.read(PIECE))
    return state.hexdigest()


def require_same_data(finetuning_args: FinetuningArguments, training_args: TrainingArguments) -> None:
    """Refuse to go on with other data: the steps that are to be skipped would be others."""
    checkpoint = training_args.resume_from_checkpoint
    if not checkpoint or not finetuning_args.data_digests:
        return
    if getattr(finetuning_args.stage_options, "ignore_changed_data", False):
        return
    before = (read_contents(Path(checkpoint)) or {}).get("data") or finetuning_args.data_digests
    changes = describe_changes(before, finetuning_args.data_digests)
    if changes:
        raise ValueError(
            f"`resume_from_checkpoint: {checkpoint}`: the data have changed since ({changes}): bring the old files "
            "back, begin anew in another folder, or set `ignore_changed_data: true`."
        )


def describe_changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What is new, gone and different."""
    return ", ".join(
        f"{name} is {'new' if name not in before else 'gone' if name not in now else 'different'}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
