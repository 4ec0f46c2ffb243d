"""Where data sets lie: entries of dataset_info.json, the host's registry, and the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


# What an entry of dataset_info.json, ours or the host's, says in text: where its rows lie, and which of them.
PLACE_KEYS = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
CHOICE_KEYS = ("subset", "split", "folder", "task")


@dataclass(frozen=True)
class HubOptions:
    """How the hub is reached, the cache used and data prepared: the host's `cache_dir`, `hf_hub_token`,
    `overwrite_cache` and `preprocessing_num_workers`."""

    cache_dir: str | None = None
    token: str | None = None
    renew: bool = False
    processes: int = 1


def registered_entries(
    dataset_names: Sequence[str] | str, dataset_dir: str | dict[str, Any], formatting: str
) -> list[tuple[str, Mapping[str, Any]]]:
    """Data sets by name with their entries in the host's registry, looked up as in the host's stages."""
    from llamafactory.data.parser import get_dataset_list  # late: it imports the whole host

    names = dataset_names.split(",") if isinstance(dataset_names, str) else list(dataset_names)
    names = [name.strip() for name in names]
    try:
        entries = [attributes.entry for attributes in get_dataset_list(names, dataset_dir)]
    except (AttributeError, TypeError, KeyError, RecursionError) as error:  # the host expects objects and texts
        raise ValueError(
            f"`dataset_dir`: an entry of dataset_info.json in {dataset_dir} is not as it must be ({error}): each is "
            "an object, and so are its `columns` and `tags`."
        ) from error
    # `dataset_dir: ONLINE` has no registry: the name is the whole entry
    return [
        (name, entry or {"hf_hub_url": name, "formatting": formatting})
        for name, entry in zip(names, entries, strict=True)
    ]


def check_entry_values(entry: Mapping[str, Any], where: str) -> None:
    """Refuse an entry, or the description of its texts, whose values are of another kind than their keys ask for."""
    for key in (*PLACE_KEYS, *CHOICE_KEYS):
        value = entry.get(key, "")
        if not (isinstance(value, str) or (value is None and key in CHOICE_KEYS)):
            raise ValueError(f"{where}: `{key}` must be text, not {value!r}.")
    columns = entry.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"{where}: `columns` must be an object that names a column for each role, not {columns!r}.")
    for role, column in columns.items():
        if not isinstance(column, str):
            raise ValueError(f"{where}: `columns` must name a column for `{role}` by text, not {column!r}.")
    number = entry.get("num_samples")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
        raise ValueError(f"{where}: `num_samples` must be a whole number of rows above 0, not {number!r}.")


def load_from_hub(
    name: str,
    location: str,
    hub: HubOptions,
    *,
    subset: str | None = None,
    split: str | None = "train",
    folder: str | None = None,
    hub_files: str | None = None,
    streaming: bool = False,
) -> Any:
    """One split of data set `name` as `datasets` loads it; all splits by their names where `split` is None."""
    import datasets

    try:
        return datasets.load_dataset(
            location,
            subset,
            data_dir=folder,
            data_files=hub_files,
            split=split,
            cache_dir=hub.cache_dir,
            token=hub.token,
            streaming=streaming,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"Data set `{name}`: `{location}` ({f'split `{split}`' if split else 'all splits'}) cannot be loaded from "
            f"the hub: {error}"
        ) from error
