"""Write the recipes and the bundled data into a folder, and bring them up to date later without losing what its owner
has changed: the rule of Debian's configuration files.

A manifest beside the files remembers what was written. A file that still has these bytes is replaced by its new
version; one that its owner changed stays, and the new version is written beside it as `NAME.new`, once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..files import whole_file, write_json
from .shipped import FOLDERS, find_shipped_root, list_shipped


MANIFEST = ".llamafactory-embed.json"
NEW_VERSION = ".new"


@dataclass
class Written:
    """What happened to the shipped files, by their paths in the folder."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Changed by their owner; the shipped version is the one that their owner has already seen."""
    conflicting: list[str] = field(default_factory=list)
    """Changed by their owner, and there is a version that their owner has not seen: it lies beside them."""
    no_longer_shipped: list[str] = field(default_factory=list)


def write_materials(folder: Path, parts: Collection[str] = FOLDERS) -> Written:
    """Bring `folder` up to date with the shipped files, or with those of them that `parts` names."""
    root = find_shipped_root()
    if folder.resolve() == root.resolve():
        raise ValueError(f"{folder} is the checkout that the recipes come from, so they are there already.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder to write the recipes and data into.")
    known = read_manifest(folder)
    written = Written()
    try:
        for name in list_shipped(root, parts):
            known[name] = _bring_up_to_date(folder, name, (root / name).read_bytes(), known.get(name), written)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(
            f"{error.filename} is in the way: a file stands where a folder belongs, or a folder where a file belongs; "
            "move it, or name another folder."
        ) from error
    finally:
        if folder.is_dir():
            shipped = set(list_shipped(root))
            written.no_longer_shipped = sorted(known.keys() - shipped)
            digests = {name: known[name] for name in sorted(known.keys() & shipped)}
            write_json(folder / MANIFEST, {"written_by": f"llamafactory-embed {__version__}", "files": digests})
    return written


def read_manifest(folder: Path) -> dict[str, str]:
    """The digests of the files as they were written last; empty where nothing was written."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]  # nothing here needs more than Python itself
        if not all(isinstance(value, str) for value in files.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: remove it; files that differ from the shipped ones will then count as changed."
        ) from error
    return dict(files)


def _bring_up_to_date(folder: Path, name: str, content: bytes, before: str | None, written: Written) -> str:
    """Write one file if that loses nothing; returns the digest of the version that its owner has now seen."""
    path, shipped = folder / name, hashlib.sha256(content).hexdigest()
    if not os.path.lexists(path):
        _write(path, content)
        written.created.append(name)
        return shipped
    present = hashlib.sha256(path.read_bytes()).hexdigest()
    if present == shipped:
        written.unchanged.append(name)
    elif present == before:
        _write(path, content)
        written.updated.append(name)
    elif shipped == before:
        written.kept.append(name)
    else:
        _write(path.with_name(path.name + NEW_VERSION), content)
        written.conflicting.append(name)
    return shipped


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
