"""Vectors in fewer bytes: the bytes of sentence-transformers, and what comes back from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamafactory_embed.hparams.embedding import PRECISIONS
from llamafactory_embed.model.quantization import (
    QuantizationRanges,
    RangeMeter,
    dequantize,
    quantize,
    rounded,
    stored_as,
)


SIZE = 20  # not a whole number of bytes of bits
VECTORS = np.random.default_rng(0).normal(size=(300, SIZE)).astype(np.float32)
VECTORS[:, 3] = 0.25  # a number that never changes
RANGES = np.stack([VECTORS[:200].min(0), VECTORS[:200].max(0)])  # the others may lie outside


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each != "float16"])
def test_the_bytes_are_those_of_sentence_transformers(precision: str) -> None:
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    ours = quantize(VECTORS, precision, RANGES)  # type: ignore[arg-type]
    expected = theirs.quantize_embeddings(VECTORS, precision, ranges=RANGES)
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)
    assert (ours.dtype, ours.shape[1]) == stored_as(precision, SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_byte_comes_back_within_half_a_step(precision: str) -> None:
    inside = VECTORS[:200]
    half_a_step = (RANGES[1] - RANGES[0]) / 255 / 2
    error = np.abs(rounded(inside, precision, RANGES) - inside)  # type: ignore[arg-type]
    assert (error <= half_a_step * 1.001 + 1e-6).all()
    assert error.max() > half_a_step.max() / 2  # as large as it may be: nothing is stored more exactly
    far_out = rounded(VECTORS * 100, precision, RANGES)  # type: ignore[arg-type]
    assert (far_out <= RANGES[1] + half_a_step + 1e-6).all()
    assert (far_out >= RANGES[0] - 1e-6).all()


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_products_of_bits_count_the_bits_that_differ(precision: str) -> None:
    signs = VECTORS > 0
    differing = (signs[:, None] != signs[None]).mean(-1)
    back = rounded(VECTORS, precision)  # type: ignore[arg-type]
    np.testing.assert_allclose(back @ back.T, 1 - 2 * differing, atol=1e-6)


def test_a_range_may_be_one_number_for_all_dimensions(tmp_path: Path) -> None:
    """As of a model whose numbers a tanh keeps between -1 and 1."""
    record = QuantizationRanges({str(SIZE): [-1.0, 1.0]}, unit_length=False)
    record.save(tmp_path)
    ranges = QuantizationRanges.load(tmp_path).of(SIZE, unit_length=False)
    np.testing.assert_array_equal(ranges, np.array([[-1.0] * SIZE, [1.0] * SIZE]))
    tanh = np.tanh(VECTORS)
    assert np.abs(rounded(tanh, "int8", ranges) - tanh).max() <= 1 / 255 + 1e-6


def test_ranges_are_measured_in_any_portions_and_come_back_exactly(tmp_path: Path) -> None:
    meters = [RangeMeter([8, SIZE], unit_length) for unit_length in (False, True)]
    for meter in meters:
        for start, end in ((0, 1), (1, 1), (1, 170), (170, 300)):
            meter.add(VECTORS[start:end])
    for meter, unit_length in zip(meters, (False, True), strict=True):
        measured = meter.finish()
        measured.save(tmp_path)
        assert QuantizationRanges.load(tmp_path) == measured
        assert measured.texts == 300
        for size in (8, SIZE):
            cut = VECTORS[:, :size]
            cut = cut / np.linalg.norm(cut, axis=1, keepdims=True) if unit_length else cut
            expected = np.stack([cut.min(0), cut.max(0)])
            np.testing.assert_allclose(measured.of(size, unit_length), expected, rtol=1e-6)
            if not unit_length:
                np.testing.assert_array_equal(measured.of(size, unit_length), expected)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    measured = QuantizationRanges({"8": [-1.0, 1.0]}, unit_length=True)
    with pytest.raises(ValueError, match=r"no ranges for 16 dimensions, only for 8: .*--calibrate"):
        measured.of(16, unit_length=True)
    with pytest.raises(ValueError, match="measured on embeddings of unit length, these are not of unit length"):
        measured.of(8, unit_length=False)
    with pytest.raises(ValueError, match="need `ranges`"):
        quantize(VECTORS, "int8")
    with pytest.raises(ValueError, match="nan or inf, which binary cannot say"):
        quantize(VECTORS * np.inf, "binary")
    with pytest.raises(ValueError, match="in binary have 3 columns of int8, not 20 of int8"):
        dequantize(np.zeros((1, SIZE), np.int8), "binary", SIZE)
    with pytest.raises(ValueError, match="cannot be measured on 0 texts"):
        RangeMeter([8], unit_length=True).finish()
    with pytest.raises(ValueError, match=r"no file of ranges .*--calibrate"):
        QuantizationRanges.read(tmp_path / "none.json")
