"""The GPU's command, rehearsed on the CPU: formulas, bounds, files, time boxes, and steps that are cheap."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_patch import patch_attention
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import right_attention, right_training, supervise
from benchmarks.gpu.closeness import allowed_error, relative_error, terms_of_layer
from benchmarks.gpu.embedding_step import make_rows, plain_step
from benchmarks.gpu.page import describe_all
from benchmarks.gpu.record import Aim, NotRunHereError, Record, describe_record, end_record, read_record
from benchmarks.gpu.right_golden import run_tests
from benchmarks.gpu.shapes import (
    LLADA,
    QWEN3,
    SMOLLM2,
    TINY_QWEN3,
    build_model,
    forward_operations,
    mixed_lengths,
    random_texts,
    training_operations,
)
from benchmarks.gpu.steps import STEPS, Bench, Step, find_step, run_step
from benchmarks.gpu.supervise import Plan, run_all
from llamafactory_embed.model.packed import forward_packed, pack_texts
from tests.patience import PATIENCE


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("cpu", True, Record(tmp_path / "step.json", "step", "A step", {}), tmp_path)


def content_of(bench: Bench) -> dict[str, Any]:
    found = read_record(bench.record.path)
    assert found is not None
    return found


# ------------------------------ formulas ------------------------------


def test_operations_are_those_that_torch_counts() -> None:
    length = 9
    model = build_model(TINY_QWEN3, "cpu", torch.float32, head=True)
    model.set_attn_implementation("eager")
    rotary = 2 * length * (TINY_QWEN3.head_size // 2)  # the product that gives the angles
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == training_operations(TINY_QWEN3, [length], scored=length) + rotary

    decoder = model.base_model.requires_grad_(False)
    states = torch.randn(1, length, TINY_QWEN3.hidden, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        decoder(inputs_embeds=states, use_cache=False).last_hidden_state.sum().backward()
    assert counter.get_total_flops() == training_operations(TINY_QWEN3, [length], frozen=True) + rotary


def test_operations_of_packed_texts_are_those_of_each() -> None:
    parts = [forward_operations(SMOLLM2, [length]) for length in (3, 40, 7)]
    assert forward_operations(SMOLLM2, [3, 40, 7]) == sum(parts)
    assert forward_operations(SMOLLM2, [50]) > sum(parts)


@pytest.mark.parametrize(("shape", "billions"), [(QWEN3, 0.596), (SMOLLM2, 0.1345), (LLADA, 8.016)])
def test_shapes_have_as_many_parameters_as_the_published_models(shape: Any, billions: float) -> None:
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.002)


def test_lengths_are_mixed_and_bounded() -> None:
    lengths = mixed_lengths(60, 512, 1 / 3)
    assert max(lengths) == 512
    assert sum(lengths) / len(lengths) == pytest.approx(512 / 3, rel=0.02)
    assert lengths != sorted(lengths)
    assert mixed_lengths(4, 512, 1.0) == [512] * 4


# ------------------------------ bounds ------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bound_lets_rounding_pass_and_a_neighbour_not(dtype: torch.dtype) -> None:
    model = build_model(dataclasses.replace(TINY_QWEN3, vocabulary=400), "cpu", torch.bfloat16).to(dtype).eval()
    exact = build_model(TINY_QWEN3, "cpu", torch.bfloat16).float().eval()
    (batch,) = pack_texts(random_texts([7, 12, 12, 3], 400))
    first, second, *others = batch.lengths
    joined = dataclasses.replace(batch, lengths=(first + second, *others))
    with torch.no_grad(), patch_attention(model, backend="sdpa"), patch_attention(exact, backend="eager"):
        (expected,) = forward_packed(exact, batch)
        (right,), (wrong,) = forward_packed(model, batch), forward_packed(model, joined)
    bound = allowed_error(dtype, TINY_QWEN3.layers, terms_of_layer(model.config, 12))
    assert relative_error(right, expected) <= bound
    assert relative_error(wrong, expected) > bound


def test_nan_is_close_to_nothing(bench: Bench) -> None:
    bench.record.error("states", float("nan"), 1.0)
    assert not content_of(bench)["checks"][0]["passed"]
    assert not Aim(at_least=0.0).reached(float("nan"))


def test_a_leak_and_a_deaf_position_are_found(bench: Bench) -> None:
    visible = torch.tensor([[True, False], [True, True]])
    for moved in ([[1.0, 0.0], [1.0, 1.0]], [[1.0, 1e-6], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]):
        right_attention.check_leaks(bench, "leaks", torch.tensor(moved), visible)
    assert [check["passed"] for check in content_of(bench)["checks"]] == [True, False, False]


# ------------------------------ files ------------------------------


def test_what_a_step_finds_is_on_disk_at_once(bench: Bench) -> None:
    bench.record.figure("speed", 3.0, "×", Aim(at_least=2.5))
    assert content_of(bench)["status"] == "running"
    end_record(bench.record.path, "step", "A step", "failed", "stopped after 9 seconds")
    found = content_of(bench)
    assert (found["status"], found["reason"]) == ("failed", "stopped after 9 seconds")
    assert found["figures"][0]["reached"]
    assert describe_record(found)[1] == "  speed: 3 × (aim ≥ 2.5: reached)"


def test_an_exception_is_a_failed_check_and_the_rest_still_runs(bench: Bench) -> None:
    def breaks() -> None:
        raise RuntimeError("CUDA error\nmore")

    def is_missing() -> None:
        raise NotRunHereError("flash_attn is not installed")

    bench.record.attempt("kernel", breaks)
    bench.record.attempt("package", is_missing)
    bench.record.attempt("other", lambda: bench.record.check("other", True, "as it should"))
    bench.record.finish(1.0)
    found = content_of(bench)
    assert [check["passed"] for check in found["checks"]] == [False, True]
    assert found["checks"][0]["found"] == "RuntimeError: CUDA error"
    assert found["not_run"] == [{"what": "package", "reason": "flash_attn is not installed"}]
    assert found["status"] == "failed"


def test_a_missed_aim_does_not_fail_a_step(bench: Bench) -> None:
    bench.record.figure("share", 20.0, "%", Aim(at_least=45.0))
    bench.record.finish(1.0)
    assert content_of(bench)["status"] == "passed"


def test_without_a_gpu_the_command_shows_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    end_record(tmp_path / "encode.json", "encode", "Encoding", "passed", "")
    assert command.main(["--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STEPS)
    assert "attention: not run: no CUDA device" in lines
    assert "encode: passed (0 of 0 checks)" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["encode.json"]


def test_an_unknown_step_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--steps", "attentoin"])
    assert "`--steps` knows no step `attentoin`; there are machine, attention," in capsys.readouterr().err


def test_the_page_says_what_was_found_and_where(bench: Bench) -> None:
    folder = bench.folder / "gpu"
    assert "Not measured yet" in describe_all(folder)
    machine = {"device": "NVIDIA H100", "versions": {"torch": "2.11.0", "flash-attn": "not installed"}}
    record = Record(folder / "attention.json", "attention", "Who sees whom", machine)
    record.check("leaks", True, "none")
    record.figure("speed", 2.0, "×", Aim(at_least=2.5))
    record.skip("Liger", "liger_kernel is not installed")
    record.finish(1.0)
    text = describe_all(folder)
    assert "| Who sees whom | passed | 1 of 1 | liger_kernel is not installed |" in text
    assert "| speed | 2 × | ≥ 2.5 × | **no** |" in text
    assert text.rstrip().endswith(": NVIDIA H100, torch 2.11.0.")


# ------------------------------ time ------------------------------


BROKEN_STEPS = """
import os, time

def hangs(bench):
    time.sleep(3600)

def dies(bench):
    bench.record.figure("before", 1.0, "s")
    os._exit(9)
"""


def test_a_step_that_hangs_or_dies_keeps_its_figures_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_steps.py").write_text(BROKEN_STEPS, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(supervise, "PRELOADED", ["torch"])
    monkeypatch.setattr(supervise, "LEAST_SECONDS", 0.0)
    steps = [
        Step("hangs", "Hangs", 1, "broken_steps:hangs"),
        Step("dies", "Dies", round(PATIENCE), "broken_steps:dies"),
    ]
    plan = Plan(tmp_path, "cpu", small=False, minutes=PATIENCE / 60, again=False)
    assert not run_all(steps, plan)
    hung, died = (read_record(plan.path(step)) for step in steps)
    assert hung is not None
    assert (hung["status"], hung["reason"]) == ("failed", "stopped after 1 seconds")
    assert died is not None
    assert (died["status"], died["reason"]) == ("failed", "its process ended with code 9")
    assert [figure["what"] for figure in died["figures"]] == ["before"]


def test_no_time_is_left_and_what_has_passed_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_record(tmp_path / "machine.json", "machine", "Machine", "passed", "")
    before = (tmp_path / "machine.json").read_text("utf-8")
    plan = Plan(tmp_path, "cpu", small=True, minutes=0, again=False)
    assert run_all([find_step("machine"), find_step("encode")], plan)
    assert (tmp_path / "machine.json").read_text("utf-8") == before
    found = read_record(tmp_path / "encode.json")
    assert found is not None
    assert (found["status"], found["reason"]) == ("not run", "no time left of 0 minutes")
    assert "--again runs it once more" in capsys.readouterr().out


# ------------------------------ rehearsals ------------------------------


@pytest.mark.parametrize("name", ["hidden_tokens", "sampling"])
def test_rehearsal(name: str, bench: Bench) -> None:
    run_step(find_step(name), bench)
    bench.record.finish(1.0)
    found = content_of(bench)
    assert found["status"] == "passed", found
    assert len(found["figures"]) > 10


@pytest.mark.parametrize(
    ("family", "dtype", "count"),
    [
        ("llama", torch.bfloat16, 8),
        ("mistral", torch.bfloat16, 6),
        ("qwen3_5_text", torch.bfloat16, 2),
        ("qwen3_5_text", torch.float32, 3),
    ],
)
def test_who_sees_whom(family: str, dtype: torch.dtype, count: int, bench: Bench) -> None:
    given: Any = (bench, "here", family, "sdpa", dtype)
    for mode in right_attention.modes_of(family):
        right_attention.compare_packed(*given, mode)
        right_attention.leak_matrix(*given, mode)
    right_attention.masks_of_training(*given)
    checks = content_of(bench)["checks"]
    assert len(checks) == count
    assert all(check["passed"] for check in checks), checks


def test_chunks_and_tiles_give_the_gradients_of_the_plain_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(4, columns=2, longest=8, fill=1 / 2)
    comparison = right_training.Comparison(bench, TINY_QWEN3, rows)
    comparison.of_precision(torch.float32)
    checks = content_of(bench)["checks"]
    assert len(checks) == 7
    assert all(check["passed"] for check in checks), checks
    monkeypatch.setattr(right_training, "cached_step", lambda model, chunks, *rest: plain_step(model, chunks[:-1], 1))
    comparison.of_precision(torch.float32)
    wrong = [check["what"] for check in content_of(bench)["checks"] if not check["passed"]]
    assert any("GradCache" in what and "gradients" in what for what in wrong)


def test_golden_tests_run_on_the_default_device(tmp_path: Path) -> None:
    (tmp_path / "test_device.py").write_text(
        "import torch\n"
        "def test_right(): assert torch.empty(1).device.type == 'meta'\n"
        "def test_wrong(): assert torch.empty(1).device.type == 'cuda', 'elsewhere'\n",
        "utf-8",
    )
    outcomes = run_tests(tmp_path, "meta")
    assert dict(outcomes.counts) == {"passed": 1, "failed": 1}
    assert [name.rpartition("::")[2] for name in outcomes.failures] == ["test_wrong"]
    assert torch.empty(1).device.type == "cpu"
