"""The notebook runs, and so do the blocks of commands that are marked with `<!-- run -->`.

On a tiny model, in one folder, in which the notebook has trained `saves/mine`.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.demo.model import write_tiny_model
from tests.docs.notebook import code_cells, run_cell
from tests.docs.site import DOCS, ROOT


NOTEBOOK = ROOT / "examples" / "notebooks" / "quickstart.ipynb"
MARKED = re.compile(r"^<!-- run -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    path.relative_to(ROOT).as_posix(): "".join(MARKED.findall(path.read_text("utf-8")))
    for path in [ROOT / "README.md", ROOT / "examples" / "README.md", *DOCS.rglob("*.md")]
    if MARKED.search(path.read_text("utf-8"))
}


def run_here(command: str) -> str:
    """A command of ours or of the host in this process, which has torch already; it prints by itself."""
    program, *words = shlex.split(command.split(" > ")[0], comments=True)
    if program == "llamafactory-embed":
        assert main(words) == 0, command
        return ""
    assert (program, words[0]) == ("llamafactory-cli", "train"), command
    from llamafactory.train.tuner import run_exp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words[1:]])
        run_exp()
    return ""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which the notebook ran, and what its cells printed: two steps of a random model."""
    folder = tmp_path_factory.mktemp("notebook")
    write_tiny_model(folder / "models" / "smollm2-6-layers")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shortened = ("".join(cell["source"]).replace("STEPS = 20", "STEPS = 2") for cell in code_cells(NOTEBOOK))
        logged = (source.replace("logging_steps: 5", "logging_steps: 1") for source in shortened)
        outputs = [run_cell(source, names, run_here) for source in logged]
    assert names["STEPS"] == 2
    return folder, outputs


def test_the_notebook_trains_looks_searches_and_exports(
    printed: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outputs = printed
    monkeypatch.chdir(folder)  # the adapter names its base by a relative path
    assert re.findall(r"step +(\d)  loss \d", outputs[2]) == ["1", "2"]
    assert "bidirectional" in outputs[3]
    assert len(outputs[4].splitlines()) == 5
    assert outputs[-1] == "the same vectors: True\n"
    assert Encoder("saves/mine").encode(["a"]).shape == (1, 128)


def test_outputs_are_those_of_one_whole_run() -> None:
    """A notebook shows what was executed from top to bottom, or nothing."""
    cells = list(code_cells(NOTEBOOK))
    counts = [cell["execution_count"] for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        assert set(counts) == {None}
        assert [cell["outputs"] for cell in cells] == [[]] * len(cells)


def test_there_are_marked_blocks() -> None:
    assert {"docs/encode.md", "docs/export.md", "docs/recipes.md", "examples/README.md"} <= BLOCKS.keys()


@pytest.mark.parametrize("page", BLOCKS)
def test_marked_commands_run(page: str, printed: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(printed[0])
    texts = Path("data/wordnet/heldout/gloss_to_noun/queries.jsonl").read_text("utf-8").splitlines(keepends=True)
    for name, count in (("corpus.jsonl", 8), ("sample.jsonl", 200)):
        Path(name).write_text("".join(texts[:count]), encoding="utf-8")
    for line in BLOCKS[page].splitlines():
        run_here(line)
