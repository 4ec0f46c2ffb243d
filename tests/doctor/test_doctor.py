"""`llamafactory-embed doctor` and the console script around it: what it says when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

import attention_patch
from llamafactory_embed import cli, doctor, processor
from llamafactory_embed.autoload import SEAMS
from llamafactory_embed.doctor import Finding, attention, environment, plugin
from tests.host.versions import UNSUPPORTED_HOST


REPOSITORY = Path(__file__).parents[2]
SITE_PACKAGES = Path(torch.__file__).parents[1]


@pytest.fixture(autouse=True)
def plugin_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMAFACTORY_EMBED_DISABLE", raising=False)


def find(findings: list[Finding], name: str) -> Finding:
    (finding,) = [each for each in findings if each.name == name]
    return finding


def install_pretended(folder: Path, package: str, release: str, requirements: tuple[str, ...] = ()) -> None:
    """The metadata of a distribution that is not really there; the first folder of the path wins."""
    info = folder / f"{package.replace('-', '_')}-{release}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {release}"]
    (info / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {each}" for each in requirements]) + "\n")


def without_section(monkeypatch: pytest.MonkeyPatch, *kept: str) -> None:
    sections = {title: examine for title, examine in doctor.SECTIONS.items() if title.startswith(kept)}
    assert len(sections) == len(kept)
    monkeypatch.setattr(doctor, "SECTIONS", sections)


@pytest.mark.process
def test_this_environment_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"llamafactory             {version('llamafactory')}",
        "start file               llamafactory_embed.pth",
    ):
        assert f"ok    {line}" in printed
    for backend in ("eager", "sdpa"):
        assert f"ok    {backend}, cpu" in printed
    adjusted = "launcher, options, data, templates, families, dispatch, api, chat"
    assert f"LLaMA-Factory            adjusted: {adjusted}" in printed


# ---------------------------------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------------------------------


def test_a_host_out_of_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_pretended(tmp_path, "llamafactory", UNSUPPORTED_HOST)
    monkeypatch.syspath_prepend(tmp_path)
    without_section(monkeypatch, "Packages")
    assert cli.main(["doctor"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    (needed,) = (each for each in map(Requirement, requires("llamafactory-embed")) if each.name == "llamafactory")
    assert f"llamafactory: {UNSUPPORTED_HOST} is not supported: pip install '{needed}'" in sentence


def test_a_package_of_the_host_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_pretended(tmp_path, "trl", "9.0")
    monkeypatch.syspath_prepend(tmp_path)
    finding = find(list(environment.examine_packages()), "trl")
    assert finding.state == "FAIL"
    assert "9.0 is not supported" in finding.value


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    present = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda name: None if name == "peft" else present(name))
    finding = find(list(environment.examine_packages()), "peft")
    assert (finding.state, finding.value) == ("FAIL", "not installed")
    assert finding.advice.startswith("pip install 'peft")


@pytest.mark.parametrize(
    ("versions", "failing"),
    [
        ({"torch": "2.11.0", "torchvision": "0.26.1", "torchaudio": "2.11.0"}, {}),
        ({"torch": "2.14.1", "torchvision": "0.29.1", "torchaudio": "2.11.0"}, {}),
        ({"torch": "2.14.1", "torchvision": "0.29.1", "torchaudio": "2.10.0"}, {"torchaudio": "2.11.*"}),
        ({"torch": "2.6.0+cpu", "torchvision": "0.21.0+cpu", "torchaudio": "2.6.0+cpu"}, {}),
        ({"torch": "2.10.0", "torchvision": "0.26.0", "torchaudio": "2.10.1"}, {"torchvision": "0.25.*"}),
        (
            {"torch": "2.9.1", "torchvision": "0.23.0", "torchaudio": "2.8.0"},
            {"torchvision": "0.24.*", "torchaudio": "2.9.*"},
        ),
    ],
)
def test_torch_and_its_companions(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], failing: dict[str, str]
) -> None:
    monkeypatch.setattr(environment, "installed_version", versions.get)
    findings = list(environment.examine_torch_family())
    assert [each.advice for each in findings] == [
        f"pip install '{name}=={wanted}'" for name, wanted in failing.items()
    ]
    assert all(each.state == "FAIL" for each in findings)


def test_a_companion_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchaudio.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    finding = find(list(environment.examine_torch_family()), "torchaudio with torch")
    assert finding.state == "FAIL"
    assert "libcudart.so.12" in finding.value


@pytest.mark.parametrize(
    ("flags", "fact"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", ", bf16"),
        ("Features\t: fp asimd bf16", ", bf16"),
        ("flags\t\t: fpu avx2 avx512f", ", no bf16: keep fp32"),
        (None, " threads"),
    ],
)
def test_whether_the_cpu_computes_in_bf16(
    flags: str | None, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    assert find(list(environment.examine_devices()), "cpu").value.endswith(fact)


def test_optional_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extras are read from the package's own metadata; those for developers are nobody's business."""
    requirements = ("needed>=1", "swift>=2; extra == 'fast'", "tool>=1; extra == 'dev'", "quick>=3; extra == 'fast'")
    install_pretended(tmp_path, "llamafactory-embed", "0.0.1", requirements)
    install_pretended(tmp_path, "quick", "2.5")
    monkeypatch.syspath_prepend(tmp_path)
    findings = list(environment.examine_packages())
    assert find(findings, "swift") == Finding("swift", "none", "", "pip install 'llamafactory-embed[fast]'")
    assert find(findings, "quick").state == "warn"
    assert find(findings, "needed").state == "FAIL"
    assert "tool" not in {each.name for each in findings}


def test_a_deepspeed_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_pretended(tmp_path, "deepspeed", "99.0")
    (tmp_path / "deepspeed.py").write_text("raise RuntimeError('CUDA_HOME does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    finding = find(list(environment.examine_packages()), "deepspeed")
    assert finding.state == "warn"
    assert "CUDA_HOME does not exist" in finding.value


# ---------------------------------------------------------------------------------------------------------------------
# The plugin in a fresh process
# ---------------------------------------------------------------------------------------------------------------------


def test_a_plugin_that_is_switched_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLAMAFACTORY_EMBED_DISABLE", "1")
    without_section(monkeypatch, "Plugin")
    assert cli.main(["doctor"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.endswith("LLAMAFACTORY_EMBED_DISABLE switches the plugin off: unset it")


def test_a_start_file_that_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python without `site`, as -S starts it, reads no start files."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{SITE_PACKAGES}")
    monkeypatch.setattr(sys, "executable", str(python))
    finding = find(list(plugin.examine_plugin()), "start file")
    assert finding.state == "FAIL"
    assert "did not run" in finding.value

    monkeypatch.setattr(plugin, "START_FILE", "another.pth")
    finding = find(list(plugin.examine_plugin()), "start file")
    assert "another.pth is in none of" in finding.value
    assert finding.advice.startswith("pip install --force-reinstall")


def test_a_host_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llamafactory").mkdir()
    (tmp_path / "llamafactory" / "__init__.py").write_text("print('hello')\nraise ImportError('libtorch is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = list(plugin.examine_plugin())
    assert find(findings, "LLaMA-Factory").state == "FAIL"
    assert "libtorch is missing" in find(findings, "LLaMA-Factory").value


def test_seams_that_do_not_fit_and_stages_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended host of another version, and two packages of which one registers what cannot be loaded."""
    host = tmp_path / "llamafactory"
    modules = ["/".join(name.split(".")[1:]) for name in SEAMS if name.startswith("llamafactory.")]
    for folder in {".", *(module.rpartition("/")[0] for module in modules)}:
        (host / folder).mkdir(parents=True, exist_ok=True)
        (host / folder / "__init__.py").touch()
    for module in modules:
        (host / f"{module}.py").touch()
    install_pretended(tmp_path, "llamafactory", "7.0")
    for package, target in (("good-package", "warm:STAGE"), ("bad-package", "nowhere:STAGE")):
        install_pretended(tmp_path, package, "1.0")
        name = package.partition("-")[0]
        entry = f"[llamafactory.stages]\n{name} = {target}\n"
        (tmp_path / f"{package.replace('-', '_')}-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (tmp_path / "warm.py").write_text(
        "from dataclasses import make_dataclass\nfrom llamafactory_embed.host import Stage\n"
        "STAGE = Stage(name='good', options=make_dataclass('Options', []), run='a:b', label='Good')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = list(plugin.examine_plugin())
    assert find(findings, "LLaMA-Factory").state == "FAIL"
    assert "llamafactory 7.0 is installed" in find(findings, "LLaMA-Factory").value
    assert find(findings, "stage good") == Finding("stage good", "ok", "from good-package")
    assert find(findings, "stage bad").state == "warn"
    assert "nowhere" in find(findings, "stage bad").value


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backend_is_compared_with_single_texts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal model and a packed row whose texts see each other are both found out."""
    expected = attention.run_texts_alone()
    assert (
        attention.try_kernel("sdpa, cpu", expected, lambda: attention.run_packed("cpu", "sdpa", dtype)).state == "ok"
    )

    one_text = (sum(attention.TEXT_LENGTHS),)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "TEXT_LENGTHS", one_text)
        leaking = attention.try_kernel("sdpa, cpu", expected, lambda: attention.run_packed("cpu", "sdpa", dtype))
    assert leaking.state == "FAIL"
    assert leaking.value.startswith("wrong result")

    bidirectional = attention_patch.patch_attention
    with monkeypatch.context() as patch:
        patch.setattr(
            attention_patch, "patch_attention", lambda model, mode, **rest: bidirectional(model, "causal", **rest)
        )
        causal = attention.try_kernel("sdpa, cpu", expected, lambda: attention.run_packed("cpu", "sdpa", dtype))
    assert causal.state == "FAIL"


def test_backends_that_break() -> None:
    expected = [torch.ones(2)]

    def crash() -> list[Any]:
        raise RuntimeError("no kernel image is available\nfor this device")

    crashed = attention.try_kernel("eager, cuda", expected, crash)
    assert (crashed.state, crashed.value) == ("FAIL", "RuntimeError: no kernel image is available")
    assert attention.try_kernel("flash_attention_2, cuda", expected, crash).state == "warn"
    assert attention.try_kernel("sdpa, cpu", expected, lambda: [torch.full((2,), torch.nan)]).state == "FAIL"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_kernels_work_on_a_gpu() -> None:
    findings = list(attention.examine_attention())
    for name in ("eager, cuda", "sdpa, cuda", "flash_attention_2, cuda", "torch varlen, cuda"):
        assert find(findings, name).state == "ok", find(findings, name)


def test_a_section_that_breaks_off_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine() -> Any:
        yield Finding("first", "ok")
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(doctor, "SECTIONS", {"Attention": examine})
    assert cli.main(["doctor"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "No module named 'torch'" in sentence


# ---------------------------------------------------------------------------------------------------------------------
# The console script
# ---------------------------------------------------------------------------------------------------------------------


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["-h"], ["recipe", "check", "-h"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"LLaMA-Factory {version('llamafactory')}" in printed
    assert all(command.help in " ".join(printed.split()) for command in cli.COMMANDS.values())


@pytest.mark.parametrize("words", [[], ["docter"], ["recipe"], ["recipe", "check"], ["doctor", "--fast"]])
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize("error", [ValueError("`option` is wrong."), ImportError("No module named 'llamafactory'")])
def test_an_error_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def run(arguments: Any) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", run)
    assert cli.main(["doctor"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"llamafactory-embed: {error}")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom llamafactory_embed.cli import main\ntry: main(['-h'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'llamafactory', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
