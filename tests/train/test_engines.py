"""What the engines are asked before a run begins."""

from __future__ import annotations

import pytest

from llamafactory_embed.train import engines


def test_fsdp_needs_its_second_version_and_a_torch_that_accelerate_can_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="set `fsdp_version: 2`"):
        engines.check_fsdp(is_second_version=False)

    def of_a_newer_torch(module: object, ignored_params: object = None) -> None: ...
    def of_torch_2_6(module: object) -> None: ...

    monkeypatch.setattr(engines, "fully_shard", of_a_newer_torch)
    engines.check_fsdp(is_second_version=True)
    monkeypatch.setattr(engines, "fully_shard", of_torch_2_6)
    with pytest.raises(ValueError, match="FSDP does not run with torch"):
        engines.check_fsdp(is_second_version=True)
