"""The rules of the house that a program can check: who may import whom, what a name and a module may be, and what a
start of Python may load. Every rule is also tried on sources with a line that breaks it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from llamafactory_embed import autoload


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
    ("files", "foreign", "hparams", "pages", "processor", "terminal"),
    ("cards", "materials", "model", "stages"),
    ("board", "loading"),
    ("host",),
    ("data",),
    ("diffusion", "encoder"),
    ("evaluation",),
    ("encoding", "export", "look", "mining", "sampling"),
    ("merging", "serve", "train"),
    ("chain", "demo", "doctor", "recipe"),
    ("cli",),
]

# Names of functions and classes that are defined in several modules on purpose.
CONTRACTS = {
    "add_arguments": "every command has one (`cli.py`)",
    "run": "every command has one (`cli.py`)",
    "apply": "every seam has one (`autoload.py`)",
}
LONGEST_MODULE = 350
SHORTEST_MODULE = 40
# Modules below `SHORTEST_MODULE` lines, apart from `__init__.py`.
SHORT_MODULES = {
    "data/packages.py": "files from the package index, for several rooms",
    "encoder/results.py": "what our engine and sentence-transformers behind it share",
    "evaluation/word_weights.py": "two formulas, which need no mteb",
    "doctor/finding.py": "the record that all sections share",
    "host/board_picture.py": "a part of one seam",
    "host/data.py": "one seam",
    "host/lm_eval.py": "one seam",
    "host/templates.py": "one seam",
    "host/training.py": "one call of the host",
    "hparams/mntp.py": "the options of one stage",
    "hparams/suggestion.py": "used by rooms that declare no options",
    "train/embed/contrastive/guide.py": "one other model",
    "train/embed/losses/distillation.py": "the losses of one kind",
    "train/embed/losses/own_passages.py": "the losses of one kind",
    "train/embed/mntp/trainer.py": "one stage's trainer",
}

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


Sources = Mapping[str, str]
"""Path below the package → text."""


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return read_sources()


@functools.cache
def read_sources() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


parse = functools.cache(ast.parse)


def room_of(path: str) -> str:
    return path.removesuffix(".py").split("/")[0]


def module_name(path: str) -> str:
    return f"{PACKAGE.name}/{path}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def names_in(path: str, nodes: Iterator[ast.AST]) -> list[str]:
    """Absolute dotted names that import statements of a module name, relative imports resolved."""
    package = [PACKAGE.name, *path.split("/")[:-1]]
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def imported_names(path: str, text: str) -> list[str]:
    """All names that a module imports, also those inside of functions."""
    return names_in(path, ast.walk(parse(text)))


def names_at_import(path: str, text: str) -> list[str]:
    """Names that are imported while the module itself is."""

    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from statements(child)

    return names_in(path, statements(parse(text)))


# Each rule takes the sources and returns what breaks it.


def private_names_of_the_host(sources: Sources) -> list[str]:
    """Only the room `host` may use more of LLaMA-Factory than `HOST_NAMES`."""
    return [
        f"{path} imports {name}"
        for path, text in sources.items()
        for name in imported_names(path, text)
        if name.split(".")[0] == "llamafactory" and name not in HOST_NAMES and room_of(path) != "host"
    ]


def climbing_imports(sources: Sources) -> list[str]:
    """A room imports rooms of lower floors only."""
    broken = []
    for path, text in sources.items():
        room = room_of(path)
        for name in imported_names(path, text):
            imported = name.removeprefix(f"{PACKAGE.name}.").split(".")[0] if name.startswith(PACKAGE.name) else ""
            is_between_rooms = room in FLOOR_OF and imported in FLOOR_OF and imported != room
            if is_between_rooms and FLOOR_OF[imported] >= FLOOR_OF[room]:
                broken.append(f"{path} imports {name}, which is not on a lower floor")
    return broken


def serving_that_trains(sources: Sources) -> list[str]:
    """Who serves does not need who trains: neither `serve`, nor what it imports, imports `train`."""
    names = {module_name(path): path for path in sources}
    waiting, seen = [path for path in sources if room_of(path) == "serve"], set[str]()
    broken = []
    while waiting:
        path = waiting.pop()
        for name in imported_names(path, sources[path]):
            if name.startswith(f"{PACKAGE.name}.train"):
                broken.append(f"{path} imports {name}")
            found = names.get(name) or names.get(name.rpartition(".")[0])
            if found is not None and found not in seen:
                seen.add(found)
                waiting.append(found)
    return broken


def import_circles(sources: Sources) -> list[str]:
    """No module imports itself through others."""
    names = {module_name(path): path for path in sources}
    imports = {
        module: {
            target
            for name in names_at_import(path, sources[path])
            if (target := name if name in names else name.rpartition(".")[0]) in names and target != module
        }
        for module, path in names.items()
    }
    broken, done = [], set[str]()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            broken.append(" → ".join((*way[way.index(module) :], module)))
        elif module not in done:
            for target in sorted(imports[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in names:
        visit(module, ())
    return broken


def misplaced_in_host(sources: Sources) -> list[str]:
    """In `host`, a module is a seam with `apply`, or a helper that a seam or another room imports."""
    modules = {path: text for path, text in sources.items() if room_of(path) == "host" and path != "host/__init__.py"}
    seams = set(autoload.SEAMS.values())
    used = {name for path, text in sources.items() for name in imported_names(path, text)}
    broken = [f"there is no seam {seam}" for seam in seams if f"host/{seam}.py" not in modules]
    for path, text in modules.items():
        if path.removeprefix("host/").removesuffix(".py") in seams:
            if "apply" not in defined_names(text):
                broken.append(f"{path} is a seam without `apply`")
        elif not any(name == module_name(path) or name.startswith(f"{module_name(path)}.") for name in used):
            broken.append(f"{path} is neither a seam nor used by anyone")
    return broken


def defined_names(text: str) -> set[str]:
    """Public functions and classes at the top of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in parse(text).body if isinstance(node, kinds) and not node.name.startswith("_")}


def names_defined_twice(sources: Sources) -> list[str]:
    """A public name means one thing."""
    modules = defaultdict(list)
    for path, text in sources.items():
        for name in defined_names(text):
            modules[name].append(path)
    twice = {name for name, paths in modules.items() if len(paths) > 1} - CONTRACTS.keys()
    return [f"{name} is defined in {' and '.join(modules[name])}" for name in sorted(twice)]


def wrong_sizes(sources: Sources) -> list[str]:
    """A module is read in one go, and holds more than a crumb unless there is a reason."""
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    short = {path for path, length in lengths.items() if length < SHORTEST_MODULE and not path.endswith("__init__.py")}
    broken = [f"{path} has {length} lines" for path, length in lengths.items() if length > LONGEST_MODULE]
    broken += [
        f"{path} has {lengths[path]} lines: merge it, or give a reason" for path in short - SHORT_MODULES.keys()
    ]
    return broken + [f"{path} is no short module: take it off the list" for path in SHORT_MODULES.keys() - short]


RULES: list[Callable[[Sources], list[str]]] = [
    private_names_of_the_host,
    climbing_imports,
    serving_that_trains,
    import_circles,
    misplaced_in_host,
    names_defined_twice,
    wrong_sizes,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_is_kept(rule: Callable[[Sources], list[str]], sources: Sources) -> None:
    assert rule(sources) == []


# Rule, module, and lines whose addition breaks the rule.
BREAKING: list[tuple[Callable[[Sources], list[str]], str, str]] = [
    (private_names_of_the_host, "data/documents.py", "from llamafactory.data.loader import _load_single_dataset"),
    (private_names_of_the_host, "cli.py", "def late():\n    import llamafactory.webui"),
    (climbing_imports, "files.py", "from .cli import main"),
    (climbing_imports, "model/packed.py", "def late():\n    from ..train.trainer import RECIPE_NAME"),
    (climbing_imports, "mining/mine.py", "from llamafactory_embed.export import card"),
    (serving_that_trains, "serve/chat.py", "from ..train.trainer import RECIPE_NAME"),
    (serving_that_trains, "hparams/option.py", "def late():\n    from ..train import trainer"),
    (import_circles, "hparams/suggestion.py", "from .option import option"),
    (import_circles, "hparams/option.py", "from . import command_line"),
    (import_circles, "hparams/suggestion.py", "class Late:\n    from .option import option"),
    (misplaced_in_host, "host/unused.py", "def apply(module):\n    pass"),
    (names_defined_twice, "cli.py", "class Encoder:\n    pass"),
    (names_defined_twice, "cli.py", "def find_problem():\n    pass"),
    (wrong_sizes, "files.py", "\n" * LONGEST_MODULE),
    (wrong_sizes, "host/crumb.py", "NOTHING = None"),
]


@pytest.mark.parametrize(("rule", "path", "lines"), BREAKING)
def test_a_line_that_breaks_a_rule_is_found(
    rule: Callable[[Sources], list[str]], path: str, lines: str, sources: Sources
) -> None:
    assert rule({**sources, path: f"{sources.get(path, '')}\n{lines}\n"})


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("hparams/suggestion.py", "def late():\n    from .option import option"),
        ("hparams/suggestion.py", "if TYPE_CHECKING:\n    from .option import option"),
    ],
)
def test_imports_that_happen_later_make_no_circle(path: str, lines: str, sources: Sources) -> None:
    assert import_circles({**sources, path: f"{sources[path]}\n{lines}\n"}) == []


def test_what_has_gone_from_a_list_is_found(sources: Sources) -> None:
    short = sorted(SHORT_MODULES)[0]
    assert wrong_sizes({path: text for path, text in sources.items() if path != short})
    assert misplaced_in_host(
        {**sources, "host/launcher.py": sources["host/launcher.py"].replace("def apply", "def _a")}
    )


def test_every_room_has_a_floor(sources: Sources) -> None:
    rooms = {room_of(path) for path in sources}
    assert rooms - {"__init__", "autoload"} == set(FLOOR_OF) & rooms


def test_the_attention_patch_stands_alone() -> None:
    text = (REPOSITORY / "attention_patch.py").read_text(encoding="utf-8")
    roots = {name.split(".")[0] for name in imported_names("attention_patch.py", text)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers"}


def test_a_start_of_python_loads_two_small_modules() -> None:
    shown = "import sys; print(*sorted(name for name in sys.modules if name.startswith('llamafactory_embed')))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["llamafactory_embed", "llamafactory_embed.autoload"]
    heavy = "import sys; print('typing' in sys.modules, 'dataclasses' in sys.modules, 'torch' in sys.modules)"
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import llamafactory_embed.autoload; {heavy}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["False", "False", "False"]
