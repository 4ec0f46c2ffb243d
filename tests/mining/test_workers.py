"""Two ranks of torchrun and two Ray workers find what one process finds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.mining import workers
from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.miner import Miner
from llamafactory_embed.mining.options import MiningOptions
from tests.two_ranks import torchrun

from .helpers import mined


pytest.importorskip("faiss")
pytestmark = pytest.mark.process


@pytest.fixture
def options(checkpoint: Path, verbs: Path) -> dict[str, Any]:
    return {
        "model": str(checkpoint), "data": str(verbs / "verbs.jsonl"), "chunk_size": 16, "num_negatives": 4,
        "ranks": "2:20", "device": "cpu",
    }  # fmt: skip


def test_two_ranks(options: dict[str, Any], tmp_path: Path) -> None:
    mined(tmp_path, "one", **options)
    options |= {"output": str(tmp_path / "two.jsonl"), "keep_work": True}
    (tmp_path / "options.json").write_text(json.dumps(options), "utf-8")
    torchrun("tests.mining.mining_runs", tmp_path / "options.json", CUDA_VISIBLE_DEVICES="")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    summaries = [json.loads((tmp_path / f"{name}.summary.json").read_text("utf-8")) for name in ("one", "two")]
    one, two = (each | {"output": "", "entry": {}} for each in summaries)
    assert one == two


def test_two_ray_workers(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    mined(tmp_path, "one", **options)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def refuse(self: Miner, step: str, number: int) -> None:
        raise AssertionError("the driver must leave the work to the workers")

    monkeypatch.setattr(Miner, "do", refuse)
    try:
        mined(tmp_path, "two", **options, ray_workers=2)
        with pytest.raises(ValueError, match=r"`ray_workers: 9`: the Ray cluster has 2 CPUs"):
            mine(MiningOptions(**options, output=str(tmp_path / "three.jsonl"), ray_workers=9))
    finally:
        ray.shutdown()
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_what_ended_ray_workers_is_told_in_a_sentence() -> None:
    pytest.importorskip("ray")
    from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException

    miner: Any = SimpleNamespace(jobs=lambda step: [3, 4])
    killed = workers._explain(ActorDiedError(), miner, "embed")
    assert killed.startswith("A Ray worker ended while it did jobs of `embed` (The actor died")
    assert killed.endswith(" memory left: 2 of them are left; what is done stays done, and the same command goes on.")
    assert "\n" not in killed
    failed = UserCodeException("UDF failed")
    failed.__cause__ = ValueError("`model`: no such folder.")
    assert workers._explain(RayTaskError("do", "Traceback", failed), miner, "embed") == "`model`: no such folder."
