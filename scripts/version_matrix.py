"""The tests under other versions of the libraries: the table in docs/decisions/0002-version-bounds.md.

    python scripts/version_matrix.py --dry-run                  # from the root of the repository: what would be run
    python scripts/version_matrix.py newest-torch               # some lanes; without a name, all
    python scripts/version_matrix.py bounds --python .venv/bin/python   # in an environment that is there already

A lane is a copy of the checkout in which some requirements are replaced, an environment that pip makes from it
(several gigabytes), and a list of test files. `host-main` needs a folder or a wheel of LLaMA-Factory, named by
`LLAMAFACTORY_SOURCE`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement


REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "decisions" / "0002-version-bounds.md"
BEGIN, END = "<!-- version matrix: begin -->", "<!-- version matrix: end -->"
SOURCE_VARIABLE = "LLAMAFACTORY_SOURCE"

LIBRARIES = ("torch", "torchvision", "torchaudio", "transformers", "peft", "llamafactory")  # columns of the table
COLUMNS = ("lane", "date", *LIBRARIES, "passed", "failed", "skipped", "tests")

TESTS_WITHOUT_HOST = (
    "tests/attention",
    "tests/model/test_families.py",
    "tests/model/test_packed.py",
    "tests/model/test_pooling.py",
    "tests/sampling/test_loop.py",
    "tests/sampling/test_guesses.py",
    "tests/encoder",
)
TESTS = (
    *TESTS_WITHOUT_HOST,
    "tests/doctor",
    "tests/host",
    "tests/loading",
    "tests/serve",
    "tests/train/embed/contrastive/test_workflow.py",
)


@dataclass(frozen=True)
class Lane:
    """One combination of versions."""

    name: str
    requirements: dict[str, str | None] = field(default_factory=dict)
    """Name of a dependency → what the copy of the checkout requires instead; None: nothing."""
    extras: str = "dev,eval,metrics"
    tests: tuple[str, ...] = TESTS
    from_source: bool = False
    """Whether LLaMA-Factory is installed from `LLAMAFACTORY_SOURCE`."""


def declared_requirements() -> dict[str, Requirement]:
    """The dependencies of pyproject.toml by their names."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    return {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}


def lower_bound(requirement: Requirement) -> str:
    """The same dependency, at the lowest version that is allowed."""
    (lowest,) = (clause.version for clause in requirement.specifier if clause.operator == ">=")
    return f"{requirement.name}=={lowest}"


def make_lanes() -> dict[str, Lane]:
    """All lanes by their names."""
    declared = declared_requirements()
    lanes = [
        Lane("bounds"),  # what a plain installation gets
        Lane("lowest", {name: lower_bound(declared[name]) for name in LIBRARIES}),
        Lane("newest-torch", {"torch": "torch", "torchvision": "torchvision"}),
        Lane(
            "without-host",
            {"llamafactory": None, "torchaudio": None, "torchvision": None}
            | {name: name for name in ("torch", "transformers", "peft")},
            extras="dev",
            tests=TESTS_WITHOUT_HOST,
        ),
        Lane(
            "host-main",
            {"llamafactory": "llamafactory>=0.9.5,<1", "transformers": "transformers>=5.5.4"},
            from_source=True,
        ),
    ]
    return {lane.name: lane for lane in lanes}


def install_commands(lane: Lane, folder: Path) -> list[list[str]]:
    """How the environment of a lane is made beside its copy of the checkout."""
    python = str(folder / "environment" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-e", f"{folder / 'checkout'}[{lane.extras}]"]
    if lane.from_source:
        install.append(os.environ[SOURCE_VARIABLE])
    return [[sys.executable, "-m", "venv", str(folder / "environment")], install]


def test_command(python: Path, tests: Sequence[str], report: Path) -> list[str]:
    """How the tests are run; they need no GPU and no network."""
    return [str(python), "-m", "pytest", "-p", "no:xdist", f"--junitxml={report}", *tests]


def copy_checkout(lane: Lane, target: Path) -> None:
    """The files of this checkout, with the lane's requirements. Where the host's range changes, so does the one that
    the seams accept."""
    shutil.rmtree(target, ignore_errors=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    pyproject = target / "pyproject.toml"
    pyproject.write_text(replace_requirements(pyproject.read_text("utf-8"), lane.requirements), "utf-8")
    host = lane.requirements.get("llamafactory")
    if host is not None:
        contract = target / "llamafactory_embed" / "host" / "contract.py"
        text = contract.read_text("utf-8")
        accepted = f'HOST_VERSIONS = "{Requirement(host).specifier}"'
        contract.write_text(re.sub(r'^HOST_VERSIONS = ".*"$', accepted, text, flags=re.MULTILINE), "utf-8")


def replace_requirements(pyproject: str, requirements: dict[str, str | None]) -> str:
    """The text of a pyproject.toml with other dependencies."""
    for name, replacement in requirements.items():
        line = "" if replacement is None else f'    "{replacement}",\n'
        pyproject, count = re.subn(rf'^    "{name}[^\w-].*",\n', line, pyproject, count=1, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"pyproject.toml has no dependency {name} on a line of its own.")
    return pyproject


def installed_versions(python: Path) -> dict[str, str]:
    """What an environment holds."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    command = [str(python), "-c", code]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def count_outcomes(report: Path) -> dict[str, str]:
    """Passed, failed and skipped tests of a JUnit report; an error counts as a failure."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": str(total - failed - skipped), "failed": str(failed), "skipped": str(skipped)}


def update_table(page: str, row: dict[str, str]) -> str:
    """The page with this row in its table, in place of an earlier one of the same lane."""
    before, _, rest = page.partition(BEGIN)
    table, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"The page has no table between {BEGIN} and {END}.")
    kept = [line for line in table.strip().splitlines()[2:] if line.split("|")[1].strip() != row["lane"]]
    lines = [*kept, "| " + " | ".join(row.get(column, "–") for column in COLUMNS) + " |"]
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([f"{before}{BEGIN}", *head, *lines, f"{END}{after}"])


def describe_tests(lane: Lane, tests: Sequence[str]) -> str:
    """What a row of the table counts."""
    if tuple(tests) == lane.tests:
        return "the lane's"
    return ", ".join(f"`{name.removeprefix('tests/').removesuffix('.py')}`" for name in tests)


def run_lane(lane: Lane, tests: Sequence[str], folder: Path, python: Path | None) -> None:
    """Make the environment, unless one is given, run the tests in it and write the row."""
    folder.mkdir(parents=True, exist_ok=True)
    checkout = REPOSITORY
    if python is None:
        checkout = folder / "checkout"
        copy_checkout(lane, checkout)
        for command in install_commands(lane, folder):
            print("==", shlex.join(command), flush=True)
            subprocess.run(command, check=True)
        python = folder / "environment" / "bin" / "python"
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = test_command(python, tests, report)
    print("==", shlex.join(command), flush=True)
    subprocess.run(command, cwd=checkout, env=environment)  # failures are counted, not raised
    if not report.is_file():
        raise ValueError(f"The tests of lane {lane.name} wrote no report: see their output.")
    row = {"lane": lane.name, "date": datetime.date.today().isoformat(), "tests": describe_tests(lane, tests)}
    PAGE.write_text(
        update_table(PAGE.read_text("utf-8"), row | installed_versions(python) | count_outcomes(report)), "utf-8"
    )


def show_lane(lane: Lane, tests: Sequence[str], folder: Path) -> None:
    """Print the requirements and the commands of a lane."""
    print(f"{lane.name}:")
    for name, replacement in lane.requirements.items():
        print(f"  requires {replacement or f'no {name}'}")
    python = folder / "environment" / "bin" / "python"
    for command in (*install_commands(lane, folder), test_command(python, tests, folder / "report.xml")):
        print(f"  {shlex.join(command)}")


def main(words: Sequence[str] | None = None) -> int:
    """Run, or show, the lanes that are named."""
    lanes = make_lanes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lanes", nargs="*", metavar="lane", help=f"one of {', '.join(lanes)}; none: all of them")
    parser.add_argument("--tests", nargs="+", help="test files to run instead of the lane's")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "versions", help="for the environments")
    parser.add_argument("--python", type=Path, help="the interpreter of an environment to use as it is")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run")
    options = parser.parse_args(words)
    if unknown := [name for name in options.lanes if name not in lanes]:
        parser.error(f"there is no lane {unknown[0]}, only {', '.join(lanes)}")
    if options.python is not None and len(options.lanes) != 1:
        parser.error("`--python` needs the name of one lane")

    for lane in (lanes[name] for name in options.lanes or lanes):
        if lane.from_source and SOURCE_VARIABLE not in os.environ:
            print(f"{lane.name}: skipped, set {SOURCE_VARIABLE} to a folder or a wheel of LLaMA-Factory")
            continue
        tests, folder = options.tests or lane.tests, options.folder / lane.name
        if options.dry_run:
            show_lane(lane, tests, folder)
        else:
            run_lane(lane, tests, folder, options.python and options.python.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
