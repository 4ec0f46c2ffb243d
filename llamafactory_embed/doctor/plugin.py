"""The plugin, as a fresh process sees it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .finding import PACKAGE, Finding, describe_error


START_FILE = "llamafactory_embed.pth"
FRESH_PROCESS_TIMEOUT = 600


def examine_plugin() -> Iterator[Finding]:
    """Whether a new Python process that imports LLaMA-Factory knows our stages."""
    code = "from llamafactory_embed.doctor.plugin import tell_about_plugin; tell_about_plugin()"
    command = [sys.executable, "-P", "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, timeout=FRESH_PROCESS_TIMEOUT)
    if process.returncode != 0:
        cause = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        yield Finding("fresh process", "FAIL", cause, f"pip install --force-reinstall --no-deps {PACKAGE}")
        return

    facts = json.loads(process.stdout.splitlines()[-1])
    if not facts["started"]:
        yield Finding("start file", "FAIL", *explain_missing_start())
        return
    if facts["disabled"]:
        yield Finding("start file", "FAIL", "LLAMAFACTORY_EMBED_DISABLE switches the plugin off", "unset it")
        return

    yield Finding("start file", "ok", f"{START_FILE} is active")
    if facts["error"]:
        yield Finding("LLaMA-Factory", "FAIL", f"cannot be imported: {facts['error']}")
    elif facts["mismatches"]:
        yield Finding("LLaMA-Factory", "FAIL", " ".join(facts["mismatches"]))
    else:
        yield Finding("LLaMA-Factory", "ok", f"adjusted: {', '.join(facts['seams'])}")
    for name, owner in facts["stages"].items():
        yield Finding(f"stage {name}", "ok", f"from {owner}")
    for name, sentence in facts["problems"].items():
        yield Finding(f"stage {name}", "warn", sentence)
    if not facts["stages"]:
        yield Finding("stages", "warn", "no package registers a stage", f"reinstall {PACKAGE}")


def explain_missing_start() -> tuple[str, str]:
    """Why the start file did not run."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    holding = [folder for folder in folders if (Path(folder) / START_FILE).is_file()]
    if holding:
        return f"{START_FILE} is in {holding[0]} but did not run", "start Python without -S, -I or -s"
    advice = f"pip install --force-reinstall --no-deps {PACKAGE}"
    return f"{START_FILE} is in none of {', '.join(folders)}", advice


def tell_about_plugin() -> None:
    """Runs in the fresh process: import the modules that our seams adjust, and print the result as JSON."""
    autoload = sys.modules.get("llamafactory_embed.autoload")  # only the start file puts it there
    is_waiting = autoload is not None and any(isinstance(each, autoload.SeamFinder) for each in sys.meta_path)
    facts: dict[str, Any] = {"started": autoload is not None, "disabled": not is_waiting}
    if autoload is not None and is_waiting:
        from ..host import contract
        from ..stages.registry import load_registry

        mismatches: list[str] = []
        contract.report_mismatch = lambda mismatch: mismatches.append(str(mismatch))
        error = None
        is_there = importlib.util.find_spec
        # lm-eval is optional
        seams = {module: seam for module, seam in autoload.SEAMS.items() if is_there(module.partition(".")[0])}
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                for module in seams:
                    importlib.import_module(module)
            except BaseException as problem:  # a host that calls sys.exit must not end the report
                error = describe_error(problem)
        registry = load_registry()
        facts |= {
            "seams": list(dict.fromkeys(seams.values())),
            "mismatches": mismatches,
            "error": error,
            "stages": {name: registry.owner(name) for name in registry.stages},
            "problems": registry.problems,
        }
    print(json.dumps(facts))
