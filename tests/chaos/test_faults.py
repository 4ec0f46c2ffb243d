"""A sample of `make chaos`: whenever a process is killed, what was whole stays whole, and going on ends the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


pytest.importorskip("faiss")

from .jobs import Job, make_jobs
from .sweep import sweep
from .writing_calls import IS_POSSIBLE


pytestmark = [
    pytest.mark.skipif(not IS_POSSIBLE, reason="system calls are watched on Linux, x86-64"),
    pytest.mark.skipif("CHAOS" not in os.environ, reason="a sweep by itself: set CHAOS=1, or run `make chaos`"),
]

# How many of the states that differ a job goes on from, and how many calls meet a full disk: every so many.
SAMPLES = {"merge": (0, 0), "encoding": (9, 0), "tdro weights": (3, 2), "evaluation": (0, 5)}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return {job.name: job for job in make_jobs(tmp_path_factory.mktemp("chaos"))}


@pytest.fixture
def clean_environment(single_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_lost(name: str, jobs: dict[str, Job], clean_environment: None, tmp_path: Path) -> None:
    swept = sweep(jobs[name], tmp_path / "log.txt", *SAMPLES[name])
    assert swept.points > 5
    assert swept.losses == [], (tmp_path / "log.txt").read_text("utf-8", errors="replace")[-3000:]
