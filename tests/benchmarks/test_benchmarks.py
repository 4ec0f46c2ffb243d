"""The benchmarks compare what is equal, count what they say, and write what they found. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks import encode, grad_cache_4096, packed_forward, report, start_cost, training
from benchmarks.__main__ import ALL_BENCHMARKS
from benchmarks.inputs import ModelSize, TripletSizes, log_normal_lengths, make_triplets, save_model, texts_of_lengths
from benchmarks.matmul_share import StepsBetweenProducts, count_operations, products_alone, projections
from benchmarks.processes import Variant, run_fresh
from benchmarks.results_file import Figure, Result, check_equal, ratio, save, table_of


SIZE = ModelSize(
    layers=2, hidden_size=32, intermediate_size=48, heads=4, key_value_heads=2, vocabulary=400, longest=96
)
SIZES = TripletSizes(rows=5, batches=2, mean=14, fill=0.4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("benchmarks") / "model", SIZE)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def request_of_both(model: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = training.write_dataset(tmp_path_factory.mktemp("benchmarks") / "data", make_triplets(tokenizer, SIZES))
    return {"model": str(model), "data": str(data), "rows": SIZES.rows, "steps": SIZES.batches}


# ------------------------------ inputs ------------------------------


@pytest.mark.parametrize(("count", "mean", "fill"), [(96, 90, 1 / 3), (40, 30, 0.2), (16, 48, 0.6), (7, 20, 1.0)])
def test_lengths_have_the_asked_mean_and_fill(count: int, mean: int, fill: float) -> None:
    lengths = log_normal_lengths(count, mean, fill)
    assert len(lengths) == count
    assert sum(lengths) / count == pytest.approx(mean, rel=0.02)
    assert sum(lengths) / (count * max(lengths)) == pytest.approx(fill, rel=0.02)


def test_texts_are_different_and_have_exactly_their_lengths(tokenizer: Any) -> None:
    lengths = [3, 40, 3, 17, 40, 80]
    texts = texts_of_lengths(tokenizer, lengths)
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == lengths
    assert len(set(texts)) == len(lengths)


def test_every_batch_of_triplets_has_the_same_lengths(tokenizer: Any) -> None:
    triplets = make_triplets(tokenizer, SIZES)
    batches = [triplets[: SIZES.rows], triplets[SIZES.rows :]]
    lengths = [
        Counter(len(tokenizer(text)["input_ids"]) for row in batch for text in row.values()) for batch in batches
    ]
    assert lengths[0] == lengths[1]
    assert len({text for row in triplets for text in row.values()}) == 3 * SIZES.rows * SIZES.batches


def test_short_paragraphs_and_pairs_hold_no_text_twice() -> None:
    assert len(encode.short_paragraphs(5000)) == 5000
    pairs = grad_cache_4096.short_pairs(4096)
    texts = [text for pair in pairs for text in pair.values()]
    assert len(pairs) == 4096
    assert len(texts) == len(set(texts)), "the sampler would put rows with a common text into different batches"
    with pytest.raises(ValueError, match="fewer than 1000000"):
        grad_cache_4096.short_pairs(1_000_000)


# ------------------------------ fairness ------------------------------


@pytest.fixture(scope="module")
def our_losses(request_of_both: dict[str, Any]) -> list[float]:
    return training.ours(request_of_both)["losses"]


def test_both_trainers_compute_the_same_steps(request_of_both: dict[str, Any], our_losses: list[float]) -> None:
    theirs = training.sentence_transformers(request_of_both)["losses"]
    assert len(our_losses) == SIZES.batches
    assert our_losses[0] == pytest.approx(theirs[0], abs=1e-5)
    assert our_losses == pytest.approx(theirs, abs=1e-4), "the second step shows the first one's update"
    assert our_losses[0] != pytest.approx(our_losses[1], abs=1e-3), "other rows, another loss"


def test_cached_losses_of_both_are_the_plain_one(request_of_both: dict[str, Any], our_losses: list[float]) -> None:
    chunk = 3 * SIZES.mean
    ours = training.ours(request_of_both | {"options": {"grad_cache_tokens": chunk}})["losses"]
    theirs = training.sentence_transformers(request_of_both | {"chunk_tokens": chunk})["losses"]
    assert ours[0] == pytest.approx(our_losses[0], abs=1e-5)
    assert theirs[0] == pytest.approx(our_losses[0], abs=1e-5)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_loss_would_show_a_peer_with_causal_attention(
    request_of_both: dict[str, Any], our_losses: list[float], tmp_path: Path
) -> None:
    causal = shutil.copytree(request_of_both["model"], tmp_path / "causal")
    config = AutoConfig.from_pretrained(causal)
    assert config.is_causal is False
    config.is_causal = True
    config.save_pretrained(causal)
    theirs = training.sentence_transformers(request_of_both | {"model": str(causal), "steps": 1})["losses"]
    assert abs(theirs[0] - our_losses[0]) > 1e-3


def test_packed_and_padded_compute_the_same(model: Path, tokenizer: Any) -> None:
    texts = texts_of_lengths(tokenizer, log_normal_lengths(8, 14, 0.4))
    request = {"model": str(model), "token_ids": [tokenizer(text)["input_ids"] for text in texts], "warm_up_texts": 2}
    packed, padded = (packed_forward.run(request | {"kind": kind}) for kind in ("packed", "padded"))
    assert packed["first_loss"] == pytest.approx(padded["first_loss"], abs=1e-6)
    assert packed["first_loss"] > 1e-3
    assert packed["filled"] == pytest.approx(0.4, rel=0.1)


def test_both_encoders_compute_the_same(tmp_path: Path) -> None:
    checkpoint = encode.save_checkpoint(tmp_path, SIZE)
    texts = [text[:150] for text in encode.short_paragraphs(12)]
    (tmp_path / "texts.json").write_text(json.dumps(texts), "utf-8")
    request = {"checkpoint": str(checkpoint), "texts": str(tmp_path / "texts.json"), "warm_up_texts": 2}
    ours, theirs = tmp_path / "ours.npy", tmp_path / "theirs.npy"
    encode.ours(request | {"output": str(ours)})
    encode.sentence_transformers(request | {"output": str(theirs), "batch_size": 5})
    encode.check_same_embeddings(ours, theirs)
    assert np.load(ours).std(axis=0).max() > 0.01, "texts have different embeddings"
    np.save(theirs, np.load(theirs)[::-1])
    with pytest.raises(ValueError, match="no comparison is fair"):
        encode.check_same_embeddings(ours, theirs)


@pytest.mark.parametrize("other", [1.0 + 3e-5, float("nan")])
def test_different_losses_are_not_compared(other: float) -> None:
    runs = [
        {"case": "a", "variant": "ours", "repeat": 0, "first_loss": 1.0},
        {"case": "a", "variant": "theirs", "repeat": 0, "first_loss": other},
        {"case": "b", "variant": "theirs", "repeat": 0, "first_loss": 7.0},
        {"case": "b", "variant": "ours", "repeat": 0, "first_loss": 7.0 + 1e-6},
    ]
    with pytest.raises(ValueError, match="a: `first_loss` is not the same everywhere"):
        check_equal(runs, "a")
    check_equal(runs, "b")


def test_only_one_of_the_measured_interpreters_has_the_plugin(tmp_path: Path) -> None:
    code = "import sys; print(any(type(each).__name__ == 'SeamFinder' for each in sys.meta_path))"
    found = {name: each.start(code).strip() for name, each in start_cost.make_interpreters(tmp_path).items()}
    assert found == {"plugin active": "True", "LLAMAFACTORY_EMBED_DISABLE=1": "False", "no .pth file": "False"}


# ------------------------------ figures ------------------------------


def test_counted_operations_are_those_of_the_model(model: Path) -> None:
    length = 9
    decoder = AutoModel.from_pretrained(model, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        states = decoder(input_ids=torch.arange(length)[None], use_cache=False).last_hidden_state
        states.sum().backward()
    rotary = 2 * length * (SIZE.hidden_size // SIZE.heads // 2)  # the product that gives the angles
    assert counter.get_total_flops() == count_operations(SIZE, [length]) + rotary


def test_a_step_is_compared_with_the_products_beside_it() -> None:
    clock = StepsBetweenProducts(size=8)
    clock.starts = [0.0, 10.0, 20.0, 30.0, 40.0]  # products lie between the end of a step and the start of the next
    clock.step_ends = [9.0, 12.0, 24.0, 32.0]
    clock.peaks = [1.0, 100.0, 200.0, 300.0, 100.0]
    clock.losses = [0.5]
    report = clock.report(rows=4, operations=150)
    # The first step warms up; 150 operations in 2, 4 and 2 seconds beside products of 150, 250 and 200 a second.
    assert report["share"] == pytest.approx(150 / 2 / 200)  # the middle of 0.5, 0.15 and 0.375
    assert (report["seconds"], report["samples_per_second"], report["peak"]) == (2.0, 2.0, 200.0)


def test_products_alone_multiply_what_a_layer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    with FlopCounterMode(display=False) as counter:
        speed = products_alone(projections(SIZE), tokens=8, trials=1)
    assert counter.get_total_flops() == 2 * speed


def test_a_ratio_is_the_median_over_pairs() -> None:
    seconds = {"ours": [1.0, 10.0, 2.0], "theirs": [3.0, 20.0, 8.0]}  # pairs: 3, 2, 4; medians alone would give 4
    runs = [
        {"case": "c", "variant": variant, "repeat": repeat, "seconds": value}
        for variant, values in seconds.items()
        for repeat, value in enumerate(values)
    ]
    runs.append({"case": "other", "variant": "ours", "repeat": 0, "seconds": 99.0})
    figure = ratio("speed", runs, "c", of="theirs", to="ours", key="seconds", at_least=2.5)
    assert (figure.value, figure.lowest, figure.highest) == (3.0, 2.0, 4.0)
    assert figure.reached
    assert not dataclasses.replace(figure, at_least=3.5).reached
    assert not dataclasses.replace(figure, at_most=2.9).reached


def test_a_fresh_process_answers_and_its_failure_is_told() -> None:
    assert run_fresh(Variant("builtins:dict", {"rows": 3})) == {"rows": 3}
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks\.processes:nothing failed.*AttributeError"):
        run_fresh(Variant("benchmarks.processes:nothing", {}))


# ------------------------------ the page ------------------------------


def make_result() -> Result:
    runs = [
        {"case": "long", "variant": "ours", "repeat": 0, "seconds": 1.0},
        {"case": "long", "variant": "theirs", "repeat": 0, "seconds": 2.5},
    ]
    return Result(
        settings={"texts": 3},
        runs=runs,
        figures=[
            ratio("speed", runs, "long", of="theirs", to="ours", key="seconds", at_least=3.0),
            Figure("share", 81.2, 80.0, 83.0, unit="%", at_least=80.0),
            Figure("memory", 0.5, 0.4, 0.6),
        ],
        table=table_of(runs, {"seconds": lambda median: f"{median('seconds'):.1f}"}),
    )


PAGE = """# Figures

By hand.

<!-- results: fast -->
old
<!-- end -->

<!-- results: slow -->
<!-- end -->
End.
"""


def test_tables_are_written_from_the_files(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(PAGE, "utf-8")
    save("fast", make_result(), repeats=1, folder=results)
    report.write_page(page, results)
    text = page.read_text("utf-8")
    assert "| long | ours | 1.0 |\n| long | theirs | 2.5 |\n" in text
    assert "| speed | 2.50× | 2.50× – 2.50× | ≥ 3.00× | **no** |\n" in text
    assert "| share | 81 % | 80 % – 83 % | ≥ 80 % | yes |\n" in text
    assert "| memory | 0.50× | 0.40× – 0.60× |  |  |\n" in text
    assert "old" not in text
    assert text.count("Not measured yet.") == 1
    assert text.startswith("# Figures\n\nBy hand.\n\n<!-- results: fast -->\n")
    assert text.endswith("<!-- end -->\nEnd.\n")

    report.write_page(page, results)
    assert page.read_text("utf-8") == text

    save("unknown", make_result(), repeats=1, folder=results)
    with pytest.raises(ValueError, match="has no place for the results of unknown"):
        report.write_page(page, results)


def test_the_page_of_this_project_shows_the_present_results(tmp_path: Path) -> None:
    written = report.PAGE.read_text("utf-8")
    assert {match["name"] for match in report.BLOCK.finditer(written)} == set(ALL_BENCHMARKS)
    page = tmp_path / "page.md"
    page.write_text(written, "utf-8")
    report.write_page(page)
    assert page.read_text("utf-8") == written, "run `make docs`"
