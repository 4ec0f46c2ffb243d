"""Run a chain's steps as a user would, each in a process of its own, and go on where an earlier run stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..files import digest, write_json, write_text
from ..foreign import BAD_VALUES, read_json_object, read_yaml
from ..hparams.secrets import secrets_of, without_secrets, words_without_secrets
from .definition import Chain, ChainStep


RECORD_NAME = "chain.json"
LINES_OF_A_FAILURE = 15

Runner = Callable[[list[str], Path], int]
"""Runs a command, its output into a file, and returns its exit code."""


@dataclass(frozen=True)
class Done:
    """A step that has run."""

    fingerprint: str
    """Of the step and of all that it was made from."""
    seconds: float


def run_chain(chain: Chain, report: Callable[[str], None] = print, runner: Runner | None = None) -> dict[str, Done]:
    """Run the steps that have not run yet; what was done is kept in `chain.json` after every step."""
    chain.output_dir.mkdir(parents=True, exist_ok=True)
    done = read_done(chain.output_dir)
    fingerprints: dict[str, str] = {}
    for step in chain.steps:
        before = [fingerprints[name] for name in step.needs]
        fingerprints[step.name] = digest(step.fingerprint, *before).hex()
        label = f"{step.number}/{len(chain.steps)} {step.name} ({step.kind})"
        earlier = done.get(step.name)
        if earlier is not None and earlier.fingerprint == fingerprints[step.name]:
            report(f"{label}: done before")
            continue
        if earlier is not None and step.output.exists():
            raise ValueError(
                f"Step `{step.name}` of {chain.source} is not what {step.output} was made by, as it or a step before "
                "it has changed: remove that folder to run it again, or change `output_dir`."
            )
        report(f"{label}: running, output in {log_of(step)}")
        start = time.time()
        with command_of(step) as command:
            code = (runner or run_process)(command, log_of(step))
        if code != 0:
            raise ValueError(
                f"Step `{step.name}` ended with exit code {code}; the end of {log_of(step)}:\n{_end(step)}"
            )
        done[step.name] = Done(fingerprints[step.name], time.time() - start)
        write_done(chain.output_dir, done)
        report(f"{label}: {done[step.name].seconds / 60:.1f} minutes")
    return done


@contextlib.contextmanager
def command_of(step: ChainStep) -> Iterator[list[str]]:
    """The command line of a step. The recipe of a training is written beside its folder as it runs, but without
    secrets; one that has some is handed over in a file of the user's own, which is gone afterwards."""
    if step.kind != "train":
        start = "from llamafactory_embed.cli import main; raise SystemExit(main())"
        yield [sys.executable, "-c", start, *_words(step)]
        return
    recipe, path = recipe_to_run(step), step.output.with_suffix(".yaml")
    shown = without_secrets(recipe, secrets_of(recipe))
    write_text(path, _dump(shown))
    with tempfile.TemporaryDirectory() as folder:  # others may not enter it
        if shown != recipe:
            path = Path(folder, path.name)
            path.write_text(_dump(recipe), encoding="utf-8")
        yield [str(Path(sys.executable).parent / "llamafactory-cli"), "train", str(path)]


def _dump(recipe: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return text


def shown_command(step: ChainStep) -> str:
    """The same as a user would type it, without secrets."""
    secrets = secrets_of(step.options)
    if step.kind == "train":
        changes = without_secrets(step.options, secrets)
        return f"llamafactory-cli train {step.output.with_suffix('.yaml')}  # {step.subjects[0]} with {changes}"
    return shlex.join(["llamafactory-embed", *words_without_secrets(_words(step), secrets)])


def _words(step: ChainStep) -> list[str]:
    output = [str(step.output)] if step.kind == "export" else ["--output", str(step.output)]
    return [step.kind, *step.subjects, *output, *words_of(step.options)]


def recipe_to_run(step: ChainStep) -> dict[str, Any]:
    """A training's recipe with the chain's values. A run that stopped is taken up at its newest checkpoint; one that
    has left none begins anew."""
    recipe: dict[str, Any] = read_yaml(step.subjects[0])
    has_checkpoint = any(step.output.glob("checkpoint-*"))
    return recipe | dict(step.options) | {"output_dir": str(step.output), "overwrite_output_dir": not has_checkpoint}


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as they are typed: `overwrite: true` is `--overwrite`, `default_prompts: false` is
    `--no-default-prompts`."""
    words: list[str] = []
    for name, value in options.items():
        spelled = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{spelled}" if value else f"--no-{spelled}")
        else:
            words += [f"--{spelled}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_process(command: list[str], log: Path) -> int:
    """Run a command, and leave with it when the user presses Ctrl-C."""
    with log.open("a", encoding="utf-8") as stream:
        return subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ, check=False).returncode


def log_of(step: ChainStep) -> Path:
    """Where a step's output goes."""
    return step.output.with_suffix(".log")


def read_done(folder: Path) -> dict[str, Done]:
    """What has run, by the names of the steps."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return {}
    advice = "remove it, and the folders of the steps that are to run again."
    record = read_json_object(path, advice)
    try:
        return {name: Done(str(each["fingerprint"]), float(each["seconds"])) for name, each in record.items()}
    except BAD_VALUES as error:
        raise ValueError(f"{path} is damaged: {advice}") from error


def write_done(folder: Path, done: Mapping[str, Done]) -> None:
    """Keep what has run."""
    write_json(folder / RECORD_NAME, {name: asdict(each) for name, each in done.items()})


def _end(step: ChainStep) -> str:
    log = log_of(step)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"  {line}" for line in lines[-LINES_OF_A_FAILURE:])
