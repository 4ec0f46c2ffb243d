"""Where rows come from: an entry of `dataset_info.json`, a file, or a folder in BEIR's layout."""

from __future__ import annotations

import os

from ..data.files import data_files, file_type, is_saved_dataset
from ..data.retrieval.beir import is_collection
from ..data.retrieval.entries import Entry, find_entries, make_entry


def find_source(option: str, data: str, dataset_dir: str) -> Entry:
    """The entry that `data` names, or one made for its path."""
    if os.path.exists(data):
        check_readable(option, data)
        name = os.path.splitext(os.path.basename(os.path.normpath(data)))[0]
        return make_entry(name, {"file_name": os.path.abspath(data), "formatting": "retrieval"}, "")
    if not os.path.isfile(os.path.join(dataset_dir, "dataset_info.json")):
        raise ValueError(
            f"`{option}`: there is no file or folder `{data}`, and `dataset_dir: {dataset_dir}` holds no "
            "dataset_info.json that could name it."
        )
    if "," in data:
        raise ValueError(f"`{option}`: {data!r} names several data sets; name one, each gets an output of its own.")
    (entry,) = find_entries([data], dataset_dir)
    if not entry.on_hub and not os.path.exists(entry.location):
        raise ValueError(f"`{option}`: there is no file `{entry.location}`, which data set `{data}` names.")
    return entry


def check_readable(option: str, path: str) -> None:
    """Refuse a path that no reader knows."""
    if not os.path.exists(path):
        raise ValueError(f"`{option}`: there is no file or folder `{path}`.")
    if os.path.isfile(path):
        file_type(path)
    elif not is_collection(path) and not is_saved_dataset(path) and not data_files(path):
        raise ValueError(f"`{option}`: the folder `{path}` holds neither data files nor a BEIR collection.")


def fingerprint(path: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file or of all files in a folder: what tells that data has changed."""
    if path is None or not os.path.exists(path):
        return []
    files = [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
