"""What mkdocs cannot do by itself for docs/, whose pages are also read on GitHub.

- A page may link to files outside of docs/, such as a recipe: each of them becomes a page of the site, at
  `repository/<its path>`, so that the site is whole without a network and always shows the files of its own version.
- A link to a folder leads to the folder's README.
- Anchors are those that GitHub makes.
- The decisions are listed in the menu, all of them.
- The pages' sources lie beside them, for `llms.txt`, which names them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "repository"  # the folder of the site that holds what lies outside of docs/

# A block or span of code, which is left as it is; else a link: its target in group 2, its anchor in group 3.
_CODE_OR_LINK = re.compile(
    r"(^```.*?^```$|^~~~.*?^~~~$|`[^`\n]*`)|\]\(\s*<?(?![a-z][a-z0-9+.-]*:)([^)\s>#]+)(#[^)\s>]*)?>?", re.M | re.S
)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}


def github_anchor(title: str, separator: str = "-") -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)


def linked_files(text: str, path: Path) -> list[Path]:
    """The files of the repository that a page links to; the page lies at `path`."""
    targets = [match[2] for match in _CODE_OR_LINK.finditer(text) if match[2]]
    return [_file_of((path.parent / target).resolve()) for target in targets]


def relink(text: str, path: Path) -> str:
    """The text of the page for the file at `path`, with the links of the site."""
    folder = Path(place(path)).parent

    def replaced(match: re.Match[str]) -> str:
        if not match[2]:
            return match[0]
        target = _file_of((path.parent / match[2]).resolve())
        return f"]({Path(os.path.relpath(place(target), folder)).as_posix()}{match[3] or ''}"

    return _CODE_OR_LINK.sub(replaced, text)


def place(path: Path) -> str:
    """Where a file of the repository lies in the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"{OUTSIDE}/{name}" if path.suffix == ".md" else f"{OUTSIDE}/{name}.md"


def outside_files(pages: Iterable[Path]) -> list[Path]:
    """What lies outside of docs/ and is linked to, by a page or by a file that is linked to."""
    waiting, found = list(pages), set()
    while waiting:
        page = waiting.pop()
        for file in linked_files(page.read_text(encoding="utf-8"), page):
            if file.is_file() and not file.is_relative_to(DOCS) and file not in found:
                found.add(file)
                waiting += [file] if file.suffix == ".md" else []
    return sorted(found)


def page_of(path: Path) -> str:
    """The page that shows a file outside of docs/."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    name = path.relative_to(ROOT).as_posix()
    fence = "````" if "```" in text else "```"
    return f"# {name}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _file_of(path: Path) -> Path:
    return path / "README.md" if path.is_dir() else path


# What mkdocs calls.


def on_config(config: Any) -> Any:
    """Anchors as GitHub's, and the decisions in the menu."""
    config.mdx_configs["toc"]["slugify"] = github_anchor
    decisions = next(entry["Decisions"] for entry in config.nav if "Decisions" in entry)
    decisions += sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("decisions/0*.md"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside of docs/."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in outside_files(DOCS.rglob("*.md")):
        generated = File.generated(config, place(path), content=page_of(path))
        generated.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(generated)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site needs them; a page of a file of code has none."""
    source = page.file.src_uri
    path = ROOT / source.removeprefix(f"{OUTSIDE}/") if source.startswith(f"{OUTSIDE}/") else DOCS / source
    return relink(markdown, path) if path.is_file() else markdown


def on_post_build(config: Any) -> None:
    """Put the sources of the pages beside the pages."""
    for source in DOCS.rglob("*.md"):
        shutil.copyfile(source, Path(config.site_dir) / source.relative_to(DOCS))
