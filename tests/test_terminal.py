"""A text that changes in its place, on a terminal that understands what is written."""

from __future__ import annotations

import io
import os
import re
import shutil

import pytest

from llamafactory_embed.terminal import SettlingText, wrap


class Screen(io.StringIO):
    """A terminal that knows carriage return, new line, cursor up, and clearing what is below."""

    def lines(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for code, up, text in re.findall(r"(\r|\n|\x1b\[J)|\x1b\[(\d+)A|([^\r\n\x1b]+)", self.getvalue()):
            if code == "\r":
                column = 0
            elif code == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif code:
                rows[row] = rows[row][:column]
                del rows[row + 1 :]
            elif up:
                row -= int(up)
            else:
                rows[row] = rows[row][:column] + text
                column += len(text)
        return rows


@pytest.fixture(autouse=True)
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((21, 4)))  # pytest asks, too


def test_texts_replace_one_another() -> None:
    screen = Screen()
    screen.write("before\nAssistant: ")
    with SettlingText(screen, prefix="Assistant: ") as settling:
        settling.show("░░ ░ long enough for two lines")
        assert screen.lines() == ["before", "Assistant: ░░ ░ long", " enough for two line", "s"]
        settling.show("a b")
        assert screen.lines() == ["before", "Assistant: a b"]
        settling.show("a\nb\nc\nd\ne")  # higher than the window: its end
        assert screen.lines() == ["before", "c", "d", "e"]
        settling.show("done")
    assert screen.lines() == ["before", "Assistant: "]


def test_lines_are_cut_by_the_width_of_their_characters() -> None:
    assert wrap("abcdef\ngh\n", 4) == ["abcd", "ef", "gh", ""]
    assert wrap("日本語です", 4) == ["日本", "語で", "す"]
    assert wrap("e\u0301e\u0301e\u0301", 3) == ["e\u0301e\u0301e\u0301"]
    assert wrap("a\x1b[2Jb", 9) == ["a[2Jb"]
