"""Where the recipes and the bundled data lie: inside of the installed package, or in the checkout that is imported.

They are kept once, in `examples/` and `data/` of the repository; the wheel carries them as files of this room
(`pyproject.toml`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


FOLDERS = ("data", "examples")
IN_WHEEL = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).parents[2]
# What a system or an editor leaves in a checkout, and what an earlier version of a file leaves beside it.
LEFT_OUT = ("__pycache__", ".DS_Store", ".ipynb_checkpoints")
LEFT_OUT_ENDINGS = (".new", ".tmp", ".pyc", "~")


def find_shipped_root() -> Path:
    """The folder that holds `data/` and `examples/`."""
    for root in (IN_WHEEL, CHECKOUT):
        if all((root / name).is_dir() for name in FOLDERS):
            return root
    raise ValueError(
        f"This installation has no recipes: neither {IN_WHEEL} nor {CHECKOUT} holds `data` and `examples`; install "
        "llamafactory-embed again."
    )


def list_shipped(root: Path, parts: Collection[str] = FOLDERS) -> list[str]:
    """Paths below `root`, sorted, of the files that are one of `parts` or lie in one of them."""
    found = [path for part in parts for path in (root / part, *(root / part).rglob("*"))]
    return sorted({path.relative_to(root).as_posix() for path in found if path.is_file() and _is_ours(path, root)})


def _is_ours(path: Path, root: Path) -> bool:
    names = path.relative_to(root).parts
    return not any(name in LEFT_OUT for name in names) and not path.name.endswith(LEFT_OUT_ENDINGS)
