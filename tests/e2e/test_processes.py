"""The plugin is there in every process: command line, torchrun, Ray, wheel, editable and uv installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, read_losses, write_recipe


pytestmark = pytest.mark.process

IS_ACTIVE = "import sys; print(any(type(f).__name__ == 'SeamFinder' for f in sys.meta_path), 'torch' in sys.modules)"


def test_the_command_line_runs_a_third_party_stage_and_scales_its_loss(run, scaled_pt_recipe, tmp_path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", scaled_pt_recipe)
    done = run("llamafactory-cli", "train", recipe)
    assert done.returncode == 0, done.stderr[-2000:]
    other = str(tmp_path / "unscaled")
    done = run(sys.executable, "-m", "llamafactory.cli", "train", recipe, "loss_scale=1.0", f"output_dir={other}")
    assert done.returncode == 0, done.stderr[-2000:]
    scaled, plain = read_losses(scaled_pt_recipe["output_dir"]), read_losses(other)
    assert scaled[0] == pytest.approx(2 * plain[0], rel=1e-6)


def test_torchrun_starts_one_process_without_an_accelerator(run, scaled_pt_recipe, tmp_path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", scaled_pt_recipe)
    done = run("llamafactory-cli", "train", recipe, FORCE_TORCHRUN="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read_losses(scaled_pt_recipe["output_dir"])) == scaled_pt_recipe["max_steps"]
    assert "Initializing 1 distributed tasks" in done.stdout + done.stderr


def test_two_ranks_of_torchrun_know_the_stage(run, scaled_pt_recipe, tmp_path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", scaled_pt_recipe)
    done = run("lmf", "train", recipe, FORCE_TORCHRUN="1", NPROC_PER_NODE="2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "world size: 2" in done.stdout + done.stderr
    assert len(read_losses(scaled_pt_recipe["output_dir"])) == scaled_pt_recipe["max_steps"]


def test_a_ray_worker_knows_the_stage(run, scaled_pt_recipe, tmp_path) -> None:
    pytest.importorskip("ray")
    scaled_pt_recipe |= {"ray_num_workers": 1, "ray_init_kwargs": {"num_cpus": 10}}
    done = run(
        "llamafactory-cli", "train", write_recipe(tmp_path / "recipe.yaml", scaled_pt_recipe),
        USE_RAY="1", RAY_USAGE_STATS_ENABLED="0", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read_losses(scaled_pt_recipe["output_dir"])) == scaled_pt_recipe["max_steps"]


def test_a_ray_cluster_that_is_too_small_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from types import SimpleNamespace

    from llamafactory_embed.host.dispatch import check_cluster

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ValueError, match=r"reserves 10 CPUs .* has 16 for `ray_num_workers: 2`.*num_cpus: 20"):
        check_cluster(SimpleNamespace(ray_num_workers=2, ray_init_kwargs=None))


def test_a_ray_worker_that_ends_ends_the_run_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own one if it has said one; the others, which may wait for it, are ended."""
    ray = pytest.importorskip("ray")
    from ray.exceptions import ActorDiedError, RayTaskError

    from llamafactory_embed.host.dispatch import lost_workers_named

    ended: list[str] = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("all"))
    sentence = "Another process of this run ended, and took this one along in step 3."
    failures: dict[str, Exception] = {
        r"^Another .* in step 3\.$": RayTaskError("train", "Traceback", ValueError(sentence)).as_instanceof_cause(),
        r"^A Ray worker of this run ended \(The actor died.* from the last whole checkpoint\.$": ActorDiedError(),
    }
    for said, failure in failures.items():
        with pytest.raises(ValueError, match=said) as raised, lost_workers_named():
            raise failure
        assert "\n" not in str(raised.value)
    with pytest.raises(RayTaskError, match="zero"), lost_workers_named():
        raise RayTaskError("train", "Traceback: zero", ZeroDivisionError()).as_instanceof_cause()
    assert ended == ["all"] * 3


def test_help_shows_the_stage_and_its_options(run) -> None:
    usage = run("llamafactory-cli", "help")
    assert "scaled-pt" in usage.stdout
    training_help = run("llamafactory-cli", "train", "-h").stdout
    assert re.search(r"\{pt,sft,[^}]*\bscaled-pt\b[^}]*\}", training_help)
    assert "Factor on the loss." in training_help


def test_disabled_means_stock(run) -> None:
    done = run(sys.executable, "-c", IS_ACTIVE, LLAMAFACTORY_EMBED_DISABLE="1")
    assert done.stdout.split()[0] == "False"


PIP = (sys.executable, "-m", "pip")  # the pip of this environment, which `--python` sends into another


def pip_wheel(python: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    install = [*PIP, "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)


def pip_editable(python: Path, tmp_path: Path) -> None:
    install = [*PIP, "--python", str(python), "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "-e", str(REPOSITORY)], check=True, capture_output=True)


def uv_wheel(python: Path, tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--python", str(python)]
    subprocess.run([*install, str(REPOSITORY)], check=True, capture_output=True)


@pytest.mark.parametrize("install", [pip_wheel, pip_editable, uv_wheel], ids=lambda function: function.__name__)
def test_every_kind_of_install_starts_the_plugin(install: Any, tmp_path: Path) -> None:
    """A fresh environment that borrows the dependencies of this one, but none of its `.pth` files."""
    venv.create(tmp_path / "fresh")
    python = tmp_path / "fresh" / "bin" / "python"
    site = next((tmp_path / "fresh" / "lib").glob("python*/site-packages"))
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(borrowed + "\n", encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    before = subprocess.run([python, "-c", IS_ACTIVE], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert before.stdout.split() == ["False", "False"]
    install(python, tmp_path)
    after = subprocess.run([python, "-c", IS_ACTIVE], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert after.stdout.split() == ["True", "False"], after.stderr
    import_patch = "import attention_patch, llamafactory_embed.model.packed; print('imported')"
    imported = subprocess.run([python, "-c", import_patch], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert imported.stdout.strip() == "imported", imported.stderr
