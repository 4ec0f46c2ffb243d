"""The start file does nothing in programs that are not LLaMA-Factory: popular packages are imported as without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE


# Asked for in one process; those that are not installed are passed over.
POPULAR = """
numpy scipy pandas sklearn matplotlib PIL requests urllib3 idna certifi charset_normalizer yaml tqdm rich click
typer jinja2 markupsafe packaging attr pydantic fastapi starlette uvicorn httpx httpcore anyio aiohttp multidict
yarl dateutil pytz six wrapt psutil joblib threadpoolctl networkx sympy regex fsspec filelock huggingface_hub
safetensors tokenizers pyarrow xxhash dill pygments docutils lxml bs4 sqlite3 asyncio email http.server unittest
xml.etree pytest hypothesis omegaconf antlr4 websockets orjson msgpack zstandard cryptography setuptools pip wheel
"""

SHOW = f"""
import importlib, sys
found = 0
for name in {POPULAR!r}.split():
    try:
        importlib.import_module(name)
        found += 1
    except ImportError:
        pass
print()
print(found, *sorted(sys.modules))
"""
START_FILE = Path(__file__).parents[2] / "llamafactory_embed.pth"


def imports(start: str) -> tuple[int, set[str], list[str]]:
    """How many popular packages a process has imported after `start`, its modules, and what Python says it executed
    for them. No start file of the environment runs in it (`-S`)."""
    code = f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}\n{start}\n{SHOW}"
    command = [sys.executable, "-S", "-X", "importtime", "-c", code]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd="/", timeout=PATIENCE, env=environment
    )
    found, *modules = done.stdout.splitlines()[-1].split()
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    executed = [line.rpartition("|")[2].strip() for line in lines]
    return int(found), set(modules), executed


def test_popular_packages_are_imported_as_without_the_start_file() -> None:
    """Two modules more, both ours, each executed once, and none of the host's."""
    found, modules, executed = imports(START_FILE.read_text(encoding="utf-8"))
    found_without, modules_without, executed_without = imports("")
    ours = {"llamafactory_embed", "llamafactory_embed.autoload"}
    assert found == found_without >= 50
    assert modules - modules_without == ours
    assert modules_without <= modules
    assert sorted(set(executed) - set(executed_without)) == sorted(ours)
    assert len(executed) == len(executed_without) + 2
    assert not any(name.split(".")[0] in ("llamafactory", "attention_patch") for name in modules)
