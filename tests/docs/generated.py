"""The pages that are made of the code and of other pages: `python -m tests.docs.generated` (`make docs`) writes them,
and a test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.docs import commands, moves
from tests.docs.picture import picture
from tests.docs.site import DOCS, navigation


def troubleshooting() -> str:
    """docs/troubleshooting.md: the tables of messages of all pages."""
    return "\n\n".join((TROUBLESHOOTING.strip(), *_message_tables())) + "\n"


def llms() -> str:
    """docs/llms.txt: the pages in the order of the menu, for programs that read."""
    lines = [f"- [{title}]({page}): {first_sentences(page)}" for title, page in navigation()]
    return (
        "\n".join(["# llamafactory-embed", "", f"> {first_sentences('index.md')}", "", "## Pages", "", *lines]) + "\n"
    )


TROUBLESHOOTING = """
# Troubleshooting by message

Search this page for some words of the message. A `…` stands for what differs from case to case. This page is generated
(`make docs`) from the tables of the other pages, and a test looks every message up in the code.

Before anything else:

- `llamafactory-embed recipe check my.yaml` lists *all* problems of a recipe, with their lines, before anything is
  loaded.
- `llamafactory-embed doctor` says whether packages, plugin, attention and devices work.
- A message of this package says in one sentence what is wrong, which option or line, and what would be right. If one
  does not help you, that is a bug: please report it.
"""

MESSAGES = re.compile(r"^\| message \| (?:what to do|remedy) \|\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)


def messages(page: str) -> list[tuple[str, str]]:
    """The rows of a page's tables of messages: the message, and what to do."""
    rows = "".join(MESSAGES.findall((DOCS / page).read_text("utf-8"))).splitlines()
    return [(message.strip(), remedy.strip()) for message, remedy in (row.strip("|").split(" | ", 1) for row in rows)]


def pages_with_messages() -> list[str]:
    """Pages with such a table, in the order of the menu."""
    return [page for _, page in navigation() if page != "troubleshooting.md" and messages(page)]


def _message_tables() -> Iterator[str]:
    for page in pages_with_messages():
        rows = [f"| {message} | {_from_elsewhere(remedy, page)} |" for message, remedy in messages(page)]
        title = page_title(page)
        yield "\n".join([f"## {title}", "", f"[{page}]({page})", "", "| message | what to do |", "|---|---|", *rows])


def _from_elsewhere(text: str, page: str) -> str:
    """A text of one page, on another page: anchors of the page itself need its name."""
    return text.replace("](#", f"]({page}#")


def page_title(page: str) -> str:
    """The heading of a page."""
    return (DOCS / page).read_text("utf-8").splitlines()[0].removeprefix("# ")


def first_sentences(page: str) -> str:
    """How a page begins: its first sentence, and those that fit beside it into 200 characters; without links."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    paragraphs = [each.strip() for each in text.split("\n\n")[1:]]
    prose = next((each for each in paragraphs if each and each[0] not in "#|<!["), page_title(page))
    prose = re.sub(r" \(\[[^\]]*\]\([^)]*\)\)|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(prose.split()))
    kept, *sentences = re.split(r"(?<=[.:]) (?=[A-Z*`])", prose)
    while sentences and len(kept) + len(sentences[0]) < 200:
        kept += f" {sentences.pop(0)}"
    return f"{kept.removesuffix(':').removesuffix('.')}."


GENERATED: dict[str, Callable[[], str]] = {
    "commands.md": commands.page,
    **{f"move-here/{tool}.md": lambda tool=tool: moves.page(tool) for tool in moves.EXAMPLES},  # type: ignore[misc]
    "pictures/before-after.svg": picture,
    "troubleshooting.md": troubleshooting,
    "llms.txt": llms,  # reads the others
}


if __name__ == "__main__":
    for name, page in GENERATED.items():
        Path(DOCS / name).write_text(page(), encoding="utf-8")
