"""What the strict build of the site would complain about, without building it: pages, links, anchors, the network."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import site_hooks
from tests.docs.site import DOCS, ROOT, navigation, settings
from tests.docs.test_docs import headings


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_page_is_in_the_menu_once() -> None:
    listed = [page for _, page in navigation()]
    pages = [page for page in PAGES if not re.match(r"decisions/\d", page)]  # the hook adds those
    assert sorted(listed) == sorted(pages), "mkdocs.yml lists the pages of docs/"


def test_every_decision_is_in_the_menu() -> None:
    config = SimpleNamespace(mdx_configs={"toc": {}}, nav=settings()["nav"])
    site_hooks.on_config(config)
    listed = next(entry["Decisions"] for entry in config.nav if "Decisions" in entry)
    assert listed == ["decisions/README.md", *(page for page in PAGES if re.match(r"decisions/\d", page))]


def test_the_build_is_strict_and_loads_nothing_from_elsewhere() -> None:
    site = settings()
    assert site["strict"] is True
    assert site["theme"]["font"] is False
    assert site["plugins"] == ["search"]
    assert not {"repo_url", "extra_css", "extra_javascript", "extra"} & site.keys()
    assert {level for part in site["validation"].values() for level in part.values()} == {"warn"}
    assert [ROOT / hook for hook in site["hooks"]] == [Path(site_hooks.__file__)]


def test_the_extra_is_bounded() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert re.fullmatch(r"mkdocs-material>=[\d.]+,<\d+", *extras["docs"])


def site_pages() -> dict[str, str]:
    """The pages of the site before they become HTML, by their place: those of docs/, and what they link to."""
    files = [*DOCS.rglob("*.md"), *site_hooks.outside_files(DOCS.rglob("*.md"))]
    return {
        site_hooks.place(file): site_hooks.relink(site_hooks.page_of(file), file) if file.suffix == ".md" else ""
        for file in files
    }


def test_every_link_of_the_site_leads_to_a_page_and_heading() -> None:
    pages, wrong = site_pages(), []
    assert len(pages) > len(PAGES) + 50  # recipes
    for place, text in pages.items():
        for match in site_hooks._CODE_OR_LINK.finditer(text):
            if not match[2]:
                continue
            target = Path(place).parent / match[2]
            found = (DOCS / target).resolve()
            name = found.relative_to(DOCS).as_posix() if found.is_relative_to(DOCS) else "outside"
            if name not in pages and not found.is_file():
                wrong.append(f"{place}: {match[2]}")
            elif match[3] and match[3][1:] not in headings(pages[name]):
                wrong.append(f"{place}: {match[2]}{match[3]}")
    assert wrong == []


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../examples/quickstart/words.yaml", "repository/examples/quickstart/words.yaml.md"),
        ("../CONTRIBUTING.md#rules-of-the-house", "repository/CONTRIBUTING.md#rules-of-the-house"),
        ("decisions", "decisions/README.md"),
        ("data.md#vectors-of-a-teacher", "data.md#vectors-of-a-teacher"),
        ("https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_of_a_page(link: str, expected: str) -> None:
    assert site_hooks.relink(f"[a]({link}) `[b]({link})`", DOCS / "cli.md") == f"[a]({expected}) `[b]({link})`"


def test_links_of_a_file_outside_lead_back() -> None:
    text = "[a](../docs/data.md) [b](ray/wordnet_ray.yaml)"
    expected = "[a](../../data.md) [b](ray/wordnet_ray.yaml.md)"
    assert site_hooks.relink(text, ROOT / "examples" / "README.md") == expected


@pytest.mark.parametrize("title", ["`stage: contrastive`: what & why", "A -- b, c?"])
def test_anchors_are_those_of_github(title: str) -> None:
    assert {site_hooks.github_anchor(title)} == headings(f"# {title}\n")


def test_the_comparison_shows_measured_ratios() -> None:
    measured = (DOCS / "benchmarks.md").read_text("utf-8")
    shown = re.findall(r"[\d.]+×", (DOCS / "compare.md").read_text("utf-8"))
    assert len(shown) >= 12
    assert [ratio for ratio in shown if f"| {ratio} |" not in measured] == []
