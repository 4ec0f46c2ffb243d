"""Every message that a page explains is one that the package says."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.docs.generated import messages, pages_with_messages
from tests.docs.site import ROOT


NOT_OURS = ("No module named pip",)


def quoted(message: str) -> list[str]:
    """The quotations in a cell of a table."""
    return [
        (long or short).strip() for long, short in re.findall(r"``\s?(.+?)\s?``(?!`)|(?<!`)`([^`]+)`(?!`)", message)
    ]


@functools.cache
def sentences() -> list[str]:
    """The texts of the package, with a zero character where something is put in, without the marks around names."""
    return [
        text.replace("`", "")
        for path in (ROOT / "llamafactory_embed").rglob("*.py")
        for text in _texts(ast.parse(path.read_text("utf-8")))
    ]


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str) -> bool:
    """Whether a text of the package holds the message; in both, something else stands for what differs."""
    parts = [re.escape(part.strip()) for part in message.replace("`", "").split("…")]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in sentences())


def test_what_the_package_says() -> None:
    assert is_said("`num_samples` cannot be drawn")
    assert is_said("`ranks`: … is an empty range")
    assert not is_said("`ranks`: … is an empty string")


@pytest.mark.parametrize("page", pages_with_messages())
def test_every_message_is_said(page: str) -> None:
    rows = [message for message, _ in messages(page)]
    assert rows
    unquoted = [row for row in rows if not quoted(row) and row != "anything else"]
    assert unquoted == []
    assert [each for row in rows for each in quoted(row) if each not in NOT_OURS and not is_said(each)] == []
