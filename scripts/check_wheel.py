"""The package as its users get it: build it, look into it, install it where nothing is, and use it in an empty folder.

python scripts/check_wheel.py                                 # build and look: seconds, no network
python scripts/check_wheel.py --install pip --install uv      # and install with both: minutes, the package index
python scripts/check_wheel.py --install uv --python python3.12 --demo 5
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path


REPOSITORY = Path(__file__).parents[1]
UV = (sys.executable, "-m", "uv")
MATERIALS = "llamafactory_embed/materials/files/"
LARGEST_WHEEL = 4_000_000  # bytes; 1.9 MB when this was written
NEVER_IN_A_WHEEL = ("tests/", "benchmarks/", "scripts/", "docs/", "saves/", "models/", "cache/")
IN_THE_SDIST = ("README.md", "LICENSE", "docs", "tests")
RECIPE = "examples/quickstart/wordnet_lora.yaml"


def build_package(folder: Path, source: Path = REPOSITORY) -> tuple[Path, Path]:
    """The sdist of the repository, and the wheel that is built of that sdist. Uses the hatchling that is installed, so
    it needs no network."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)])
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def build_wheel_from_tree(folder: Path, source: Path = REPOSITORY) -> Path:
    """The wheel of the repository itself."""
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source)])
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, int]:
    """Path in the wheel → checksum."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if not info.is_dir()}


def expected_contents(repository: Path = REPOSITORY) -> set[str]:
    """What the wheel must hold: the package, the two files beside it, recipes and data."""

    def below(name: str) -> set[str]:
        paths = [path for path in (repository / name).rglob("*") if path.is_file()]
        ours = [path for path in paths if not {"__pycache__", ".DS_Store"} & set(path.parts)]
        return {path.relative_to(repository).as_posix() for path in ours}

    carried = {MATERIALS + name for name in below("examples") | below("data")}
    return below("llamafactory_embed") | carried | {"attention_patch.py", "llamafactory_embed.pth"}


def problems_of(sdist: Path, wheel: Path, wheel_from_tree: Path) -> list[str]:
    """What is wrong with the built files, a sentence each."""
    held = contents(wheel)
    files = {name for name in held if ".dist-info/" not in name}
    expected = expected_contents()
    problems = [f"{wheel.name} lacks {name}" for name in sorted(expected - files)]
    problems += [f"{wheel.name} holds {name}, which the repository does not have" for name in sorted(files - expected)]
    problems += [f"{wheel.name} holds {name}" for name in sorted(files) if name.startswith(NEVER_IN_A_WHEEL)]
    if held != contents(wheel_from_tree):
        problems.append("The sdist and the repository build different wheels.")
    if wheel.stat().st_size > LARGEST_WHEEL:
        problems.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {LARGEST_WHEEL:,}.")
    with tarfile.open(sdist) as archive:
        parts = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    return problems + [f"{sdist.name} lacks {part}" for part in IN_THE_SDIST if part not in parts]


def install(wheel: Path, installer: str, python: str, environment: Path, extras: str) -> Path:
    """A fresh environment with the wheel and all that it needs; returns the folder of its programs."""
    target = f"{wheel}[{extras}]" if extras else str(wheel)
    programs = environment / "bin"
    if installer == "uv":
        run([*UV, "venv", "--quiet", "--python", python, str(environment)])
        run([*UV, "pip", "install", "--quiet", "--python", str(programs / "python"), target])
    else:
        run([python, "-m", "venv", str(environment)])
        run([str(programs / "python"), "-m", "pip", "install", "--quiet", target])
    return programs


def use(programs: Path, minutes: float | None) -> None:
    """What a newcomer does, in an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        command = str(programs / "llamafactory-embed")
        for words in (["--version"], ["init", "."], ["recipe", "check", RECIPE], ["doctor"]):
            run([command, *words], cwd=empty, environment=environment)
        if minutes is not None:
            run([command, "demo", "--minutes", str(minutes)], cwd=empty, environment=environment)


def run(command: Sequence[str], cwd: str | Path | None = None, environment: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown if it fails."""
    start = time.monotonic()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    shown = " ".join(Path(word).name if word.startswith("/") else word for word in command)
    if done.returncode != 0:
        raise SystemExit(f"{shown}: exit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    print(f"  {shown}: ok, {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    """Build, look, and install as often as was asked."""
    parser = argparse.ArgumentParser(description="Build the package, look into it, install it and use it.")
    parser.add_argument("--install", action="append", choices=("pip", "uv"), default=[], help="and with this")
    parser.add_argument("--python", action="append", default=[], help="a Python to install for (default: this one)")
    parser.add_argument("--extras", default="", help="extras to install, such as demo,eval")
    parser.add_argument("--demo", type=float, metavar="MINUTES", help="run the demo in the fresh environment, too")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build_package(Path(folder, "both"))
        problems = problems_of(sdist, wheel, build_wheel_from_tree(Path(folder, "tree")))
        if problems:
            raise SystemExit("\n".join(problems))
        run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)])
        print(f"{wheel.name}: {len(contents(wheel))} files, {wheel.stat().st_size / 1e6:.1f} MB")
        for installer in arguments.install:
            for number, python in enumerate(arguments.python or [sys.executable]):
                print(f"{installer}, {python}:", flush=True)
                environment = Path(folder, f"{installer}-{number}")
                use(install(wheel, installer, python, environment, arguments.extras), arguments.demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
