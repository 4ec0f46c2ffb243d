"""What SECURITY.md promises of files of strangers: each line names its tests, and the code keeps to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llamafactory_embed


PACKAGE = Path(llamafactory_embed.__file__).parent
REPOSITORY = PACKAGE.parent
PAGE = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_each_named_test_exists() -> None:
    named = NAMED_TEST.findall(PAGE)
    assert len(named) > 10
    for path, name in named:
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{path} has no {name}"


def test_each_line_about_files_of_strangers_names_a_test() -> None:
    lines = re.findall(r"^- can(?:not)?: .*(?:\n  .*)*", PAGE, re.MULTILINE)
    assert len(lines) > 15
    own_deed = "once you train it"  # what a recipe is for
    assert [line for line in lines if not NAMED_TEST.search(line) and own_deed not in line] == []


def calls(text: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """The calls of a module: dotted name, keyword arguments and positional arguments, as they are written."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            keywords = {word.arg or "**": ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), keywords, [ast.unparse(each) for each in node.args]


def unpickling(text: str) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for name, keywords, _ in calls(text):
        is_unsafe_torch = name == "torch.load" and keywords.get("weights_only") != "True"
        is_unsafe_numpy = name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False"
        is_pickle = name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
        if is_unsafe_torch or is_unsafe_numpy or is_pickle:
            found.append(name)
    return found


def evaluation(text: str) -> list[str]:
    """Calls that run a text as a program."""
    return [name for name, _, _ in calls(text) if name in ("eval", "exec", "compile", "__import__")]


def shells(text: str) -> list[str]:
    """Calls that give a text to a shell."""
    return [
        name
        for name, keywords, _ in calls(text)
        if name in ("os.system", "os.popen", "subprocess.getoutput") or keywords.get("shell", "False") != "False"
    ]


def yaml_objects(text: str) -> list[str]:
    """YAML that is read as anything else than data."""
    return [
        f"{name}({', '.join([*words, *keywords.values()])})"
        for name, keywords, words in calls(text)
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all")
        and keywords.get("Loader") not in ("_FASTEST", "yaml.SafeLoader")
    ]


def foreign_code(text: str) -> list[str]:
    """`trust_remote_code` that nobody asked for: it comes from the user's own word only."""
    own_words = ("False", "trust_remote_code", "model_args.trust_remote_code", "serving.needs_code")
    return [
        f"{name}(trust_remote_code={keywords['trust_remote_code']})"
        for name, keywords, _ in calls(text)
        if keywords.get("trust_remote_code", "False") not in own_words
    ]


def training_arguments(text: str) -> list[str]:
    """Reading `training_args.bin`, which is a pickle."""
    return [
        name
        for name, _, words in calls(text)
        if "load" in name.split(".")[-1] and re.search(r"TRAINING_ARGS_NAME|training_args\.bin", " ".join(words))
    ]


RULES: dict[Callable[[str], list[str]], str] = {
    unpickling: "torch.load(path, weights_only=False)",
    evaluation: "eval(text)",
    shells: "subprocess.run(text, shell=True)",
    yaml_objects: "yaml.load(text, Loader=yaml.Loader)",
    foreign_code: "AutoModel.from_pretrained(name, trust_remote_code=True)",
    training_arguments: "torch.load(folder / TRAINING_ARGS_NAME, weights_only=True)",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_runs_nothing_that_a_file_says(rule: Callable[[str], list[str]]) -> None:
    assert rule(RULES[rule]), "the rule finds what breaks it"
    found = {
        path.relative_to(PACKAGE).as_posix(): broken
        for path in sorted(PACKAGE.rglob("*.py"))
        if (broken := rule(path.read_text(encoding="utf-8")))
    }
    assert found == {}
