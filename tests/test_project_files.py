"""The files that a visitor, GitHub and PyPI read: they parse, hold what they must, and agree with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed import __version__


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = sorted(re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Any) -> str:
    return "\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole_and_asks_for_little(path: Path) -> None:
    workflow = read(path)
    assert workflow["name"]
    assert workflow[True]  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest", name
        assert 0 < job["timeout-minutes"] <= 120, name
        assert set(job.get("needs", "").split()) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_their_major_version(path: Path) -> None:
    used = [step["uses"] for job in read(path)["jobs"].values() for step in job["steps"] if "uses" in step]
    for action in used:
        assert re.fullmatch(r"(actions|pypa)/[\w-]+@(v\d+|release/v\d+)", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_programs_that_exist(path: Path) -> None:
    text = commands(read(path))
    for script in re.findall(r"(?:^|\s)((?:scripts|\.ci)/[\w./-]+)", text):
        assert (ROOT / script).is_file(), script


def test_ci_is_what_runs_on_a_laptop() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    assert ".ci/run" in commands(workflow)
    assert set(PYTHONS) <= set(workflow["jobs"]["install"]["strategy"]["matrix"]["python"])


def test_a_release_is_built_attested_and_published_without_a_stored_secret() -> None:
    path = ROOT / ".github" / "workflows" / "release.yml"
    jobs = read(path)["jobs"]
    assert jobs["attest"]["needs"] == "build"
    assert jobs["publish"]["needs"] == "attest"
    assert jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert [step["uses"] for step in jobs["publish"]["steps"]][-1] == "pypa/gh-action-pypi-publish@release/v1"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_in_githubs_format(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]


def test_the_citation_is_that_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])


def test_the_image_is_built_of_what_is_supported() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"python:(3\.\d+)", text)) <= set(PYTHONS)
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, flags=re.MULTILINE)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert text.count("\nUSER ") == 1  # not root


def test_badges_say_what_is_declared() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"img\.shields\.io/badge/([^)]+)\)", readme)
    badges = {name: value for name, value, _ in (re.split(r"(?<!-)-(?!-)", each) for each in shown)}
    (host,) = (each for each in PROJECT["dependencies"] if each.startswith("llamafactory>"))
    assert badges == {
        "python": "_%7C_".join(PYTHONS),
        "LLaMA--Factory": re.findall(r">=([\d.]+)", host)[0],
        "licence": PROJECT["license"].replace("-", "--"),
    }
