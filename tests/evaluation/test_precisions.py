"""`eval --precisions`: each column has the scores of the vectors that the Encoder stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation import revisions
from llamafactory_embed.evaluation.report import Line, Summary, format_summary
from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.model.quantization import QuantizationRanges
from tests.embedders import PROSE, make_embedder
from tests.evaluation.test_command import pairs_file, read_summary
from tests.tiny_models import tiny_tokenizer


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "calibrated"
    save_checkpoint(make_embedder(), folder)
    tiny_tokenizer().save_pretrained(folder)
    Encoder(folder, device="cpu").calibrate(PROSE).save(folder)
    return folder


def ndcg(similarities: np.ndarray) -> float:
    """nDCG@10 of the fixture `beir`, in which the next line has grade 2 and the one after it grade 1."""
    last, scores = len(PROSE) - 1, []
    for query in range(last - 1):
        grades = {min(query + step, last): 3 - step for step in (2, 1)}
        order = np.argsort(-similarities[query], kind="stable")[:10]
        gain = sum(grades.get(int(place), 0) / np.log2(rank + 2) for rank, place in enumerate(order))
        ideal = sum(grade / np.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values(), reverse=True)))
        scores.append(gain / ideal)
    return float(np.mean(scores))


def test_each_precision_is_a_column_with_its_own_scores(
    command: Command, calibrated: Path, beir: Path, tmp_path: Path
) -> None:
    output, pairs = tmp_path / "out", pairs_file(tmp_path)
    words = ["eval", calibrated, "--tasks", beir, pairs, "--output", output, "--rescore-multiplier", 1000]
    code, shown, said = command(*words, "--precisions", "float32", "int8", "binary")
    assert code == 0, said
    name = revisions.name_of_folder(calibrated)
    scores = read_summary(output)
    found = scores[("following_lines", "ndcg_at_10")]
    assert list(found) == [name, f"{name} (int8)", f"{name} (binary)"]

    encoder = Encoder(calibrated, device="cpu")
    queries = encoder.encode_queries([line[:40].strip() for line in PROSE])
    for precision, label in (("float32", name), ("int8", f"{name} (int8)"), ("binary", f"{name} (binary)")):
        how: dict[str, Any] = {"precision": precision}
        documents = encoder.encode_documents(PROSE, **how)
        assert found[label] == pytest.approx(ndcg(encoder.similarity(queries, documents, **how)), abs=1e-5)
        texts = encoder.encode_queries(PROSE, **how)  # texts of pairs are written like queries
        similar = np.diag(encoder.similarity(texts[:-1], texts[1:], **how))
        expected = spearmanr(similar, range(len(similar))).statistic
        assert scores[("pairs", "spearman")][label] == pytest.approx(expected, abs=1e-5)
    assert len(set(found.values())) == 3
    lost = 100 * (found[f"{name} (binary)"] - found[name])
    assert f"({lost:+.2f})" in shown

    ranges = QuantizationRanges.load(calibrated)
    narrow = {size: [[end / 20 for end in ends] for ends in both] for size, both in ranges.ranges.items()}
    dataclasses.replace(ranges, ranges=narrow).save(calibrated)  # type: ignore[arg-type]
    assert command(*words, "--precisions", "int8")[0] == 0
    assert read_summary(output)[("following_lines", "ndcg_at_10")][f"{name} (int8)"] != found[f"{name} (int8)"]


def test_what_cannot_be_judged_is_told_before_a_model_is_loaded(
    command: Command, checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    words = ["eval", checkpoint, "--tasks", beir, "--output", tmp_path, "--precisions"]
    code, _, said = command(*words, "int8")
    assert code == 1
    assert "`precision: int8` needs the ranges" in said
    assert "--calibrate" in said
    code, _, said = command(*words, "int4")
    assert code == 1
    assert "`precisions: int4` must be one of float32, float16, int8" in said


def test_the_table_says_what_a_precision_loses() -> None:
    lines = [Line("a", "ndcg_at_10", "", {"m": 0.5, "m (int8)": 0.4951}), Line("b", "map", "", {"m (int8)": 0.25})]
    summary = Summary(["m", "m (int8)"], lines, compared_with={"m (int8)": "m"})
    rows = format_summary(summary).splitlines()
    assert rows[1].split() == ["a", "ndcg_at_10", "50.00", "49.51", "(-0.49)"]
    assert rows[2].split() == ["b", "map", "-", "25.00"]
