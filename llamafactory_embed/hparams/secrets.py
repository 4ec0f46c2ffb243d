"""Tokens, keys and passwords: they belong to a run, not into what it writes.

A checkpoint keeps its recipe and may be pushed to a hub, so secrets are taken out before anything is written. A secret
is recognised by the name of its option or variable, by its value where the run was given one, and by its shape where
the service that issues it made it recognisable.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar


HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"(^|[._-])(token|api[_-]?key|access[_-]?key([_-]id)?|account[_-]?key|private[_-]?key|authorization|sas)$"
    r"|secret|passw(or)?d|passphrase|credential",
    re.IGNORECASE,
)
# Tokens of a tokenizer, which are not secret.
_TEXT_TOKENS = re.compile(r"(^|[._-])(mask|bos|eos|pad|unk|sep|cls)[_-]token$", re.IGNORECASE)
# Tokens of Hugging Face, GitHub, OpenAI and its kind, Amazon and Slack.
_SECRET_SHAPES = re.compile(
    r"\b(hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|sk-[\w-]{16,}|AKIA[A-Z0-9]{12,}|xox[abprs]-[\w-]{10,})"
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")
_ASSIGNMENT = re.compile(r"([\w.-]+)=(?!\s)([^\s&;,'\"]+)")
# Shorter texts stand in many places by chance.
_SHORTEST_SECRET = 8

Value = TypeVar("Value")


def is_secret_name(name: object) -> bool:
    """Whether an option, a key or an environment variable of that name holds a secret."""
    return isinstance(name, str) and bool(_SECRET_NAME.search(name)) and not _TEXT_TOKENS.search(name)


def secrets_of(*records: object) -> set[str]:
    """The secrets that argument objects and mappings hold, however deep, and those of the environment: their values
    are to be hidden wherever else they stand, under whatever name."""
    texts = {value for name, value in os.environ.items() if is_secret_name(name) and not value.startswith(("/", "~"))}
    for record in records:
        texts.update(_list_secrets(record if isinstance(record, Mapping) else vars(record)))
    return {text for text in texts if len(text) >= _SHORTEST_SECRET}


def without_secrets(value: object, secrets: Collection[str] = ()) -> Any:
    """A copy of a recipe, or of part of one, without secrets: None in place of a secret option, "(hidden)" in place of
    a part of a text. `secrets` are values that are hidden wherever they occur."""
    if isinstance(value, Mapping):
        return {
            name: None if is_secret_name(name) and _is_filled(each) else without_secrets(each, secrets)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(each, secrets) for each in value]
    return _hide_in_text(value, secrets) if isinstance(value, str) else value


def words_without_secrets(words: Iterable[str], secrets: Collection[str] = ()) -> list[str]:
    """The words of a command line without those that give a secret, as `--hub_token x` or `hub_token=x` do."""
    kept: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        if is_secret_name(name.lstrip("-")) and (equals or word.startswith("--")):
            is_value = not equals
        elif word.startswith("--") or not is_value:
            is_value = False
            kept.append(without_secrets(word, secrets))
    return kept


def arguments_without_secrets(arguments: Value) -> Value:
    """A copy of an argument object, such as the training arguments that a checkpoint keeps, without its secrets."""
    shown = copy.copy(arguments)
    secrets = secrets_of(arguments)
    for name, value in vars(arguments).items():
        if is_secret_name(name) and _is_filled(value):
            vars(shown)[name] = None
        elif isinstance(value, (str, dict, list)) and (cleaned := without_secrets(value, secrets)) != value:
            vars(shown)[name] = cleaned
    return shown


def _list_secrets(record: Mapping[Any, Any]) -> Iterable[str]:
    for name, value in record.items():
        if is_secret_name(name):
            yield from _list_texts(value)
        elif isinstance(value, Mapping):
            yield from _list_secrets(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _list_secrets(vars(value))


def _list_texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _list_texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _list_texts(each)


def _is_filled(value: object) -> bool:
    """Whether a value could be a secret: a number or a switch cannot."""
    return isinstance(value, (str, bytes, Mapping, list, tuple)) and len(value) > 0


def _hide_in_text(text: str, secrets: Collection[str]) -> str:
    if text.lstrip().startswith(("{", "[")):  # options such as `ray_init_kwargs` may be written as JSON
        try:
            parsed = json.loads(text)
        except ValueError:
            pass
        else:
            cleaned = without_secrets(parsed, secrets)
            return text if cleaned == parsed else json.dumps(cleaned, ensure_ascii=False)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _URL_USER.sub("", text)
    text = _ASSIGNMENT.sub(lambda match: f"{match[1]}={HIDDEN}" if is_secret_name(match[1]) else match[0], text)
    return _SECRET_SHAPES.sub(HIDDEN, text)
