"""JSON and YAML that anybody may have written, read within declared limits and with one sentence for what is wrong.

Both formats have texts of a few bytes that cost gigabytes or end in errors of no meaning: brackets as deep as a stack,
aliases of aliases ("a billion laughs"), numbers without end, dates that no calendar has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


# Bytes of a file of settings. The largest that people have are tokenizer.json (35 MB) and indexes of weights.
LARGEST_SETTINGS = 256 * 2**20
# Bytes of a recipe or a chain; PyYAML takes a minute for ten times as much.
LARGEST_YAML = 2**20
# Values of a YAML file, each alias counted as the values that it stands for.
MOST_YAML_VALUES = 100_000
# Levels of lists and mappings in a YAML file.
DEEPEST_YAML = 50
# Digits of a whole number; Python writes none of more than 4300.
LONGEST_NUMBER = 1000
# What PyYAML's constructors raise for values that are not what their tags or their looks say (`!!bool x`, 2001-99-99).
BAD_VALUES = (ValueError, KeyError, IndexError, AttributeError, TypeError, ArithmeticError, RecursionError)


def read_foreign_text(path: str | Path, largest: int = LARGEST_SETTINGS) -> str:
    """The text of a file; OSError where it cannot be opened, ValueError for everything else."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file.")
    if path.stat().st_size > largest:
        raise ValueError(f"{path} is larger than {largest:,} bytes, which no such file is.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def parse_foreign_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError with the reason."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are too deep") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise ValueError(str(error)) from error


def read_foreign_json(path: str | Path, advice: str = "copy it from the checkpoint again.") -> Any:
    """The value of a JSON file; `advice` ends the sentence for one that cannot be read."""
    text = read_foreign_text(path)
    try:
        return parse_foreign_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from error


def read_json_object(path: str | Path, advice: str = "copy it from the checkpoint again.") -> dict[str, Any]:
    """A mapping in a JSON file."""
    values = read_foreign_json(path, advice)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object: {advice}")
    return values


def compose_yaml(text: str) -> yaml.Node | None:
    """The tree of a YAML text, for who needs its places; None for an empty one. yaml.YAMLError where the text is not
    YAML, ValueError where it would grow beyond the limits."""
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it is longer than {LARGEST_YAML:,} characters, which no such file is")
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _count_values(root, {})
    except RecursionError as error:
        raise ValueError("its values lie too deep in one another") from error
    except yaml.YAMLError:
        raise
    except BAD_VALUES as error:  # of the scanner: `%YAML 1.2.3`, an escape beyond Unicode
        if isinstance(error, ValueError) and str(error).startswith("its "):
            raise
        raise ValueError(f"it is not valid YAML ({type(error).__name__}: {error})") from error
    return root


def _check_depth(text: str) -> None:
    """Brackets in brackets cost PyYAML the square of their depth, before it says anything."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_YAML:
            raise ValueError(f"its values lie too deep in one another, more than {DEEPEST_YAML} levels")


def is_plain_name(name: object) -> bool:
    """Whether a name that stands in a file is that of something beside it, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(sign in name for sign in "/\\\0")


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for, aliases followed. A node that is being counted has the count 0."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise ValueError("its alias stands for a value that holds the alias itself")
        return counts[id(node)]
    counts[id(node)] = 0
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"its number {node.value[:20]}… has more than {LONGEST_NUMBER} digits")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    count = 1 + sum(_count_values(each, counts) for each in inner)
    if count > MOST_YAML_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_YAML_VALUES:,} values")
    counts[id(node)] = count
    return count


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, read as data (`yaml.safe_load`); ValueError with the reason."""
    try:
        compose_yaml(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
    except BAD_VALUES as error:
        reason = error if isinstance(error, ValueError) else f"a value is not what its tag says: {error}"
        raise ValueError(" ".join(str(reason).split())) from error


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file."""
    text = read_foreign_text(path, LARGEST_YAML)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
