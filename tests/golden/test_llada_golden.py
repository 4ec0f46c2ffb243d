"""LLaDA's forward pass, as the original computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden.case_files import GOLDEN_DIR, GoldenCase
from tests.golden.forward_golden import check_forward, check_packed


# with as many key heads as query heads, and with fewer
CASES = [GoldenCase(path.parent) for path in sorted((GOLDEN_DIR / "llada").rglob("forward*/case.json"))]
FORWARD = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@FORWARD
def test_padded(case: GoldenCase, backend: Any, tmp_path: Path) -> None:
    check_forward(case, backend, tmp_path)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@FORWARD
def test_packed(case: GoldenCase, backend: Any, tmp_path: Path) -> None:
    check_packed(case, backend, tmp_path)
