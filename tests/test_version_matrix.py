"""scripts/version_matrix.py: what each lane would install and run, and the table that it keeps."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


REPOSITORY = Path(__file__).parents[1]
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text("utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "scripts" / "version_matrix.py"))


def dependencies(pyproject: str) -> dict[str, Requirement]:
    listed = tomllib.loads(pyproject)["project"]["dependencies"]
    return {requirement.name: requirement for requirement in map(Requirement, listed)}


def test_a_dry_run_shows_the_lanes_and_their_commands(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLAMAFACTORY_SOURCE", raising=False)
    main: Callable[..., int] = script["main"]
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "host-main: skipped, set LLAMAFACTORY_SOURCE" in printed
    for lane in ("bounds", "lowest", "newest-torch", "without-host"):
        assert f"{tmp_path / lane / 'environment' / 'bin' / 'python'} -m pip install" in printed

    monkeypatch.setenv("LLAMAFACTORY_SOURCE", "/somewhere/llamafactory.whl")
    assert main(["host-main", "--dry-run", "--tests", "tests/host"]) == 0
    install, run = capsys.readouterr().out.splitlines()[-2:]
    assert install.endswith("/somewhere/llamafactory.whl")
    assert run.endswith(" tests/host")
    assert list(tmp_path.iterdir()) == []


def test_every_test_that_a_lane_names_is_there(script: dict[str, Any]) -> None:
    for lane in script["make_lanes"]().values():
        assert all((REPOSITORY / name).exists() for name in lane.tests)


def test_a_copy_of_the_checkout_has_the_lanes_requirements(script: dict[str, Any], tmp_path: Path) -> None:
    lanes = script["make_lanes"]()
    lowest = dependencies(script["replace_requirements"](PYPROJECT, lanes["lowest"].requirements))
    for name, requirement in dependencies(PYPROJECT).items():
        pinned = {clause.operator for clause in lowest[name].specifier} == {"=="}
        assert pinned == (name in script["LIBRARIES"])
        assert not pinned or requirement.specifier.contains(next(iter(lowest[name].specifier)).version)

    script["copy_checkout"](lanes["host-main"], tmp_path)
    host = dependencies((tmp_path / "pyproject.toml").read_text("utf-8"))["llamafactory"]
    namespace = runpy.run_path(str(tmp_path / "llamafactory_embed" / "host" / "contract.py"))
    assert SpecifierSet(namespace["HOST_VERSIONS"]) == host.specifier
    assert (tmp_path / "tests" / "test_version_matrix.py").is_file()

    without = dependencies(script["replace_requirements"](PYPROJECT, lanes["without-host"].requirements))
    assert "llamafactory" not in without
    assert without["transformers"].specifier == SpecifierSet()
    with pytest.raises(ValueError, match="no dependency numpy"):
        script["replace_requirements"](PYPROJECT, {"numpy": "numpy<2"})


def test_a_row_replaces_that_of_its_lane_and_leaves_the_rest(script: dict[str, Any]) -> None:
    begin, end, update = script["BEGIN"], script["END"], script["update_table"]
    page = update(f"before\n{begin}\n{end}\nafter\n", {"lane": "bounds", "torch": "2.11.0", "passed": "7"})
    page = update(page, {"lane": "lowest", "torch": "2.6.0"})
    page = update(page, {"lane": "bounds", "torch": "2.11.1", "passed": "8"})
    lines = page.splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == ("before", begin, end, "after")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:-2]]
    table = [dict(zip(script["COLUMNS"], row, strict=True)) for row in rows]
    assert [(row["lane"], row["torch"], row["passed"]) for row in table] == [
        ("lowest", "2.6.0", "–"),
        ("bounds", "2.11.1", "8"),
    ]
    lane = script["make_lanes"]()["bounds"]
    assert script["describe_tests"](lane, list(lane.tests)) == "the lane's"
    assert script["describe_tests"](lane, ["tests/host", "tests/serve/test_chat.py"]) == "`host`, `serve/test_chat`"
    with pytest.raises(ValueError, match="no table between"):
        update("a page without markers", {"lane": "bounds"})


def test_outcomes_are_counted(script: dict[str, Any], tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>')
    assert script["count_outcomes"](report) == {"passed": "3", "failed": "3", "skipped": "3"}


def test_the_page_has_a_table(script: dict[str, Any]) -> None:
    assert script["update_table"](script["PAGE"].read_text("utf-8"), {"lane": "bounds"})
