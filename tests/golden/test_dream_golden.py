"""Dream's forward pass, as the original computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden.case_files import GoldenCase, golden_cases
from tests.golden.forward_golden import check_forward, check_packed


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@golden_cases("dream/forward")
def test_padded(case: GoldenCase, backend: Any, tmp_path: Path) -> None:
    check_forward(case, backend, tmp_path)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@golden_cases("dream/forward")
def test_packed(case: GoldenCase, backend: Any, tmp_path: Path) -> None:
    check_packed(case, backend, tmp_path)
