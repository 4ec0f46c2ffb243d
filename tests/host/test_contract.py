"""A host that is not the one we know: one sentence, and nothing of it is touched."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import llamafactory_embed.host as host
from llamafactory_embed.host import apply_seam, contract
from tests.host.versions import UNSUPPORTED_HOST


@pytest.fixture(autouse=True)
def seams_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_switched_off", False)


def make_launcher() -> ModuleType:
    launcher = ModuleType("llamafactory.launcher")
    launcher.launch = lambda: None
    launcher.USAGE = "-----\n| a |\n-----"
    return launcher


def test_a_known_host_is_adjusted() -> None:
    launcher = make_launcher()
    stock_launch = launcher.launch
    apply_seam("launcher", launcher)
    assert launcher.launch is not stock_launch
    assert "llamafactory-embed -h" in launcher.USAGE


def test_an_unsupported_version_names_the_range_and_switches_all_seams_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contract, "version", lambda package: UNSUPPORTED_HOST)
    launcher = make_launcher()
    before = dict(vars(launcher))
    apply_seam("launcher", launcher)
    apply_seam("launcher", launcher)
    assert vars(launcher) == before
    message = capsys.readouterr().err
    assert message.count(f"llamafactory {UNSUPPORTED_HOST} is installed") == 1
    assert contract.HOST_VERSIONS in message


def test_the_packages_metadata_asks_for_the_same_versions() -> None:
    """What pip may install beside this package is what the seams accept."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    bounds = {each.name: each.specifier for each in map(Requirement, pyproject["project"]["dependencies"])}
    assert bounds["llamafactory"] == SpecifierSet(contract.HOST_VERSIONS)


def test_a_changed_signature_names_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    launcher = make_launcher()

    def launch(command: str) -> None: ...

    launcher.launch = launch
    apply_seam("launcher", launcher)
    assert launcher.launch is launch
    assert "launch takes (command) instead of ()" in capsys.readouterr().err


def test_a_missing_attribute_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    launcher = make_launcher()
    del launcher.USAGE
    apply_seam("launcher", launcher)
    assert "llamafactory.launcher has no `USAGE`" in capsys.readouterr().err
