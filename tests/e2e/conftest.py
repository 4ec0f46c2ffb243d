"""What real processes need: a third-party stage installed for real, a tiny model, a small data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE


REPOSITORY = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def third_party_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the stage of tests/third_party."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
        + [str(REPOSITORY / "tests" / "third_party")],
        check=True,
        capture_output=True,
    )
    return site


@pytest.fixture(scope="session")
def prose_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_dir` with one small text data set for the language-model stages."""
    folder = tmp_path_factory.mktemp("data")
    lines = (REPOSITORY / "tests" / "prose.txt").read_text(encoding="utf-8").splitlines()
    rows = "\n".join(json.dumps({"text": line}) for line in lines * 4)
    (folder / "prose.jsonl").write_text(rows, encoding="utf-8")
    info = {"prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def scaled_pt_recipe(tiny_llama: Path, prose_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe for the third-party stage."""
    return {
        "model_name_or_path": str(tiny_llama),
        "stage": "scaled-pt",
        "do_train": True,
        "finetuning_type": "full",
        "loss_scale": 2.0,
        "dataset": "prose",
        "dataset_dir": str(prose_data),
        "template": "default",
        "cutoff_len": 32,
        "output_dir": str(tmp_path / "out"),
        "logging_steps": 1,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1.0e-3,
    }


@pytest.fixture
def run(third_party_site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of this environment in a working folder of its own."""

    def run_command(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMAFACTORY_EMBED")}
        environment |= {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(third_party_site),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return run_command


def write_recipe(path: Path, recipe: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def read_losses(output_dir: str | Path) -> list[float]:
    """The losses that the host's log of a run holds."""
    lines = (Path(output_dir) / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
