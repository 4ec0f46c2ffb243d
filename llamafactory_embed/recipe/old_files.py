"""Read what another tool is told: a JSON or YAML file of settings, a shell script, or a command line."""

from __future__ import annotations

import functools
import operator
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..foreign import LARGEST_YAML, parse_foreign_json, parse_yaml, read_foreign_text


_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)|\$\(\(([^()]+)\)\)")
_FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
LONGEST_FACTOR = 20  # digits of a number in a product
# Words at which a command ends or another begins.
_ENDS = frozenset(("|", "|&", ">", ">>", "2>&1", "&&", "||", ";", "&", "fi", "then", "do", "done"))


def read_old_file(path: Path) -> dict[str, Any]:
    """Flags by name, in their order; of one that stands twice the last value counts."""
    try:
        text = read_foreign_text(path, LARGEST_YAML)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    try:
        if path.suffix == ".json":
            settings = parse_foreign_json(text)
        elif path.suffix in (".yaml", ".yml"):
            settings = parse_yaml(text)
        else:
            settings = read_shell(text)
    except ValueError as error:
        raise ValueError(f"{path} is not what its name says: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict) or not settings:
        raise ValueError(f"{path} holds no settings: it must be a JSON or YAML mapping, or text with --flags.")
    return {str(name): _number(value) if isinstance(value, str) else value for name, value in settings.items()}


def read_shell(text: str) -> dict[str, Any]:
    """The flags of a command, or of all the commands of a script, with variables put in. Upper-case variables that
    are set before a command are flags, too: tools read settings from them."""
    variables: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for words in _logical_lines(text):
        while words and (found := _ASSIGNMENT.fullmatch(words[0])) is not None:
            name, plus, value = found.groups()
            value = _expand(value, variables)
            variables[name] = variables.get(name, "") + value if plus else value
            if "--" in value:
                settings |= _flags(shlex.split(value))
            elif name.isupper() and not plus:
                settings[name] = parse_value(value)
            words = words[1:]
        settings |= _flags([piece for word in words for piece in _split_expanded(word, variables)])
    return settings


def parse_value(text: str) -> Any:
    """A number, true or false where a word is one."""
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if text.startswith(("{", "[")):
        try:
            return parse_foreign_json(text)
        except ValueError:
            return text
    return _number(text)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _logical_lines(text: str) -> Iterator[list[str]]:
    """The words of each line, continued lines joined, without comments."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        try:
            words = shlex.split(_without_comment(line))
        except ValueError:  # a quote that goes on in the next line: nothing that sets a flag
            continue
        yield words[1:] if words[:1] == ["export"] else words


def _without_comment(line: str) -> str:
    """A comment begins with a `#` that begins a word and stands in no quotes."""
    quote = ""
    for position, character in enumerate(line):
        if character in "\"'" and quote in ("", character):
            quote = "" if quote else character
        elif character == "#" and not quote and (position == 0 or line[position - 1].isspace()):
            return line[:position]
    return line


def _split_expanded(word: str, variables: dict[str, str]) -> list[str]:
    """A variable that holds several flags is several words."""
    expanded = _expand(word, variables)
    return shlex.split(expanded) if word != expanded and "--" in expanded else [expanded]


def _expand(text: str, variables: dict[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        braced, default, plain, sum_ = match.groups()
        if sum_ is not None:
            return _quotient(_expand(sum_, variables), variables)
        name = braced or plain
        if name in variables:
            return variables[name]
        return default.strip("\"'") if default is not None else match[0]

    for _ in range(4):  # a variable may name a variable
        changed = _VARIABLE.sub(value_of, text)
        if changed == text:
            return text
        if len(changed) > LARGEST_YAML:
            raise ValueError(f"its variables stand for more than {LARGEST_YAML:,} characters")
        text = changed
    return text


def _quotient(text: str, variables: dict[str, str]) -> str:
    """Products and quotients of whole numbers, as scripts compute a batch size."""
    numbers = [variables.get(part.strip().lstrip("$"), part.strip()) for part in re.split(r"[*/]", text)]
    signs = re.findall(r"[*/]", text)
    is_sum = all(number.isdecimal() and len(number) <= LONGEST_FACTOR for number in numbers)
    if not is_sum or any(sign == "/" and int(number) == 0 for sign, number in zip(signs, numbers[1:], strict=True)):
        return f"$(({text}))"
    operators = {"*": operator.mul, "/": operator.floordiv}
    steps = zip(signs, map(int, numbers[1:]), strict=True)
    return str(functools.reduce(lambda left, step: operators[step[0]](left, step[1]), steps, int(numbers[0])))


def _flags(words: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    position = 0
    while position < len(words):
        found = _FLAG.fullmatch(words[position])
        position += 1
        if found is None or words[position - 1].startswith("-m"):
            continue
        name, given = found.groups()
        values = [] if given is None else [given]
        while given is None and position < len(words) and _is_value(words[position]):
            values.append(words[position])
            position += 1
        parsed = [parse_value(value) for value in values]
        settings[name.replace("-", "_")] = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
    return settings


def _is_value(word: str) -> bool:
    return word not in _ENDS and (not word.startswith("-") or isinstance(_number(word), (int, float)))
