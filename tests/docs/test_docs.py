"""The pages: their links lead somewhere, and the code that they show is the code that is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md", ROOT / "data/README.md"]
)


def without_code(page: str) -> str:
    """A page's prose: what looks like a link in a block or span of code is none."""
    blocks = re.sub(r"^(```|~~~).*?^\1$", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", blocks)


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures, however they are written."""
    prose = without_code(page)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", prose)
    definitions = re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, flags=re.MULTILINE)
    tags = re.findall(r"<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", prose)
    return [*inline, *definitions, *tags]


def headings(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(
        r"^#+ (.+?)\s*$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_are_found() -> None:
    page = 'See [a](b.md), ![c](<d.png> "e"), `[f](g)`, [h][i], <img src="j.png">.\n\n[i]: k.md\n```\n[l](m)\n```\n'
    assert links(page) == ["b.md", "d.png", "k.md", "j.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # an address on the web
        target, _, heading = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert path.exists(), f"{link} leads to nothing"
        if heading:
            assert heading in headings(path.read_text(encoding="utf-8")), f"{link} leads to no heading"


def test_the_page_on_stages_shows_the_tested_files() -> None:
    page = (ROOT / "docs" / "write-a-stage.md").read_text(encoding="utf-8")
    for name, language in (("pyproject.toml", "toml"), ("scaled_pt.py", "python")):
        file = (ROOT / "tests" / "third_party" / name).read_text(encoding="utf-8")
        assert f"```{language}\n{file}```\n" in page, f"docs/write-a-stage.md does not show {name} as it is"


def test_the_chinese_readme_shows_what_the_english_one_shows() -> None:
    """The same recipes, pages and ratios in the tables, and no command that the other does not have."""
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README_zh.md"))
    assert set(links(chinese)) <= set(links(english)) | {"docs/troubleshooting.md"}
    recipes = [link for link in links(english) if link.startswith("examples/")]
    assert len(recipes) == 12
    assert [link for link in links(chinese) if link.startswith("examples/")] == recipes
    ratios = re.findall(r"(\d\.\d+)(?:×| times| 倍)", english)
    assert ratios == ["3.6", "0.37", "3.5"]
    assert re.findall(r"(\d\.\d+) 倍", chinese) == ratios
    commands = re.findall(r"^llamafactory\S+ [a-z]+", english, re.MULTILINE)
    assert set(re.findall(r"^llamafactory\S+ [a-z]+", chinese, re.MULTILINE)) <= set(commands)
