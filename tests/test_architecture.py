"""The rules of the house that a program can check: who may import whom, and what a start of Python may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "llamafactory_embed"

# What code outside `host/` may use of LLaMA-Factory: the functions its own workflows are made of.
HOST_NAMES = {
    "llamafactory.chat.base_engine.BaseEngine",
    "llamafactory.chat.base_engine.Response",
    "llamafactory.data.get_dataset",
    "llamafactory.data.get_dataset_list",
    "llamafactory.data.get_template_and_fix_tokenizer",
    "llamafactory.data.parser.get_dataset_list",
    "llamafactory.extras.constants.AttentionFunction",
    "llamafactory.extras.constants.DATA_CONFIG",
    "llamafactory.extras.constants.EngineName",
    "llamafactory.extras.constants.FILEEXT2TYPE",
    "llamafactory.extras.logging",
    "llamafactory.extras.misc.get_device_count",
    "llamafactory.extras.ploting.plot_loss",
    "llamafactory.model.load_model",
    "llamafactory.model.load_tokenizer",
    "llamafactory.hparams.DataArguments",
    "llamafactory.hparams.FinetuningArguments",
    "llamafactory.hparams.GeneratingArguments",
    "llamafactory.hparams.ModelArguments",
    "llamafactory.hparams.TrainingArguments",
    "llamafactory.train.callbacks.PissaConvertCallback",
    "llamafactory.train.pt.trainer.CustomTrainer",
    "llamafactory.train.sft.metric.ComputeSimilarity",
    "llamafactory.train.trainer_utils.create_ref_model",
}

# From the ground up: a room may import the rooms of lower floors and itself, and no other room of its floor.
FLOORS = [
    ("files", "hparams", "terminal"),
    ("model", "stages"),
    ("board", "loading"),
    ("host",),
    ("data",),
    ("diffusion", "encoder"),
    ("evaluation",),
    ("export", "mining", "sampling"),
    ("serve", "train"),
    ("demo", "doctor", "recipe"),
    ("cli",),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_names(path: Path) -> list[str]:
    """Absolute dotted names that a module imports, relative imports resolved."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts[:-1]
    package = tuple(part for part in package if part != "__init__")
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_only_the_host_room_reaches_into_the_host(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "host"):
        return
    used = {name for name in imported_names(path) if name.split(".")[0] == "llamafactory"}
    assert used <= HOST_NAMES


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_dependencies_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room not in FLOOR_OF:
        return
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] in FLOOR_OF and parts[1] != room:
            assert FLOOR_OF[parts[1]] < FLOOR_OF[room], f"{path.name} imports {name}, which is not on a lower floor"


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()}
    assert rooms - {"__init__", "autoload"} == set(FLOOR_OF) & rooms


def test_the_attention_patch_stands_alone() -> None:
    roots = {name.split(".")[0] for name in imported_names(REPOSITORY / "attention_patch.py")}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers"}


def test_a_start_of_python_loads_two_small_modules() -> None:
    shown = "import sys; print(*sorted(name for name in sys.modules if name.startswith('llamafactory_embed')))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["llamafactory_embed", "llamafactory_embed.autoload"]
    heavy = "import sys; print('typing' in sys.modules, 'dataclasses' in sys.modules, 'torch' in sys.modules)"
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import llamafactory_embed.autoload; {heavy}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["False", "False", "False"]
