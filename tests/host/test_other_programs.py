"""The start file does nothing in programs that are not LLaMA-Factory: popular packages are imported as without it."""

from __future__ import annotations

import subprocess
import sys

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
print(found, *sorted(name for name in sys.modules if name.startswith(("llamafactory", "attention_patch"))))
"""


def test_popular_packages_load_nothing_of_this_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, cwd="/", timeout=PATIENCE
    )
    found, *loaded = done.stdout.splitlines()[-1].split()
    assert int(found) >= 50
    assert loaded == ["llamafactory_embed", "llamafactory_embed.autoload"]
