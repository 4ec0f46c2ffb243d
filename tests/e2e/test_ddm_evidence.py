"""scripts/ddm_evidence.py at the smallest size: every run of it, and its tables; and the data it teaches."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_models import save_tiny_model
from tests.two_ranks import REPOSITORY


DATA = REPOSITORY / "data" / "sorting"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import ddm_evidence

    return ddm_evidence


def test_the_digits_are_sorted_and_no_number_is_in_both_parts() -> None:
    numbers = {}
    for part, size in (("train", 4000), ("heldout", 200)):
        rows = [json.loads(line) for line in (DATA / f"{part}.jsonl").read_text("utf-8").splitlines()]
        digits = [row["prompt"].removeprefix("Sort the digits ").removesuffix(".") for row in rows]
        assert [row["answer"] for row in rows] == ["".join(sorted(each)) for each in digits]
        numbers[part] = set(digits)
        assert len(numbers[part]) == size
    assert not numbers["train"] & numbers["heldout"]


def test_the_tables(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "prepare_smollm2", lambda folder, layers: model)
    monkeypatch.setattr(script, "perform", partial(script.perform, max_samples=12, logging_steps=1))
    monkeypatch.chdir(REPOSITORY)  # the recipes name `data`
    model = save_tiny_model(tmp_path / "model")
    output = tmp_path / "out"
    small = ["--output", str(output), "--seeds", "1", "2", "--steps", "2", "--sorting-steps", "2"]
    script.main(small)
    table = (output / "results.md").read_text("utf-8")
    after = [script.read(output / f"ddm_50_{seed}") for seed in (1, 2)]
    bits = [each["eval_bits_per_token"] for each in after]
    assert bits[0] != bits[1]
    assert f" | {bits[0]:.2f} / {bits[1]:.2f} |" in table
    assert len(list(output.glob("*/generated_predictions.jsonl"))) == 2
    assert "| autoregressive | 0.0 % |" in table
    written = (output / "sorting_ddm" / "recipe.yaml").read_text("utf-8")
    assert str(output / "ddm_1_1") in written

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("what is there already must not be run again")

    monkeypatch.setattr("llamafactory.train.tuner.run_exp", refuse)
    script.main(small)
    assert (output / "results.md").read_text("utf-8") == table
