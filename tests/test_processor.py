"""What a machine lacks is said before a run, and in a sentence."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import pytest

from llamafactory_embed import processor
from llamafactory_embed.processor import has_bf16, missing_for_compilation, require_compiler


def test_what_is_missing_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    headers = {"include": str(tmp_path)}
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "my-compiler" else f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", headers.get)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(
        ValueError, match=r"^`torch_compile: true` needs a C\+\+ compiler, .*`my-compiler`.*; or leave it out\.$"
    ):
        require_compiler("cpu", "inductor")
    require_compiler("cpu", "aot_eager")
    monkeypatch.delenv("CXX")
    with pytest.raises(ValueError, match="needs Python's header files"):
        require_compiler("cpu", "inductor")
    (tmp_path / "Python.h").touch()
    require_compiler("cpu", "inductor")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton" in str(missing_for_compilation("cuda"))


def test_nobody_to_ask_about_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "there is none")
    assert has_bf16() is None
