"""A file of texts becomes a file of vectors, a window of rows at a time."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from tqdm.auto import tqdm

from ..encoder.encoder import Encoder
from ..evaluation.revisions import revision_of_source
from ..files import digest, whole_file, write_json
from ..loading.source import find_source
from ..model.quantization import RANGES_NAME, QuantizationRanges, needs_ranges, stored_as
from .options import STANDARD, EncodingOptions
from .tables import VECTOR_COLUMN, ArrowTypes, ColumnTypes, write_table
from .texts import Surveyed, Texts, standard_input
from .vector_files import UnfinishedVectors, write_npy_header


WINDOW = 8192  # texts embedded together on each device; what a crash may cost

Item = TypeVar("Item")


@dataclass(frozen=True)
class Encoded:
    """What was written."""

    rows: int
    continued_after: int
    skipped: int
    dimensions: int
    path: str


def encode_file(options: EncodingOptions, report: Callable[[str], None]) -> Encoded:
    """Embed the input into the output. What an interrupted call with these settings has done is not done again."""
    if options.output != STANDARD and Path(str(options.output)).exists() and not options.overwrite:
        raise ValueError(f"`output`: {options.output} exists; name another file, or give `--overwrite`.")
    with open_texts(options) as texts:
        surveyed = texts.survey()
        if options.output == STANDARD:
            return _encode_to(sys.stdout.buffer, texts, surveyed, options)
        types = column_types(texts, report) if str(options.output).endswith(".parquet") else None
        unfinished = UnfinishedVectors(Path(str(options.output)), decisive_settings(options, surveyed))
        try:
            done = unfinished.find(options.overwrite)
            if done:
                report(f"Continuing after {done:,} of {surveyed.rows:,} texts.")
            return _finish(unfinished, texts, surveyed, options, types)
        finally:
            unfinished.close()


def calibrate_checkpoint(options: EncodingOptions) -> tuple[Path, QuantizationRanges]:
    """Measure the ranges of a checkpoint's numbers, and keep them in its folder or where `ranges` says."""
    target = Path(options.ranges or Path(options.source, RANGES_NAME))
    if not target.parent.is_dir():
        raise ValueError(f"`calibrate`: there is no folder {target.parent} to keep {target.name} in: set `ranges`.")
    if target.exists() and not options.overwrite:
        raise ValueError(f"`calibrate`: {target} exists; give `--overwrite` to measure it again.")
    with open_texts(options) as texts:
        surveyed = texts.survey()
        encoder = load_encoder_of(options)
        try:
            meter = encoder.range_meter()
            for vectors in _embedded(encoder, texts, surveyed, 0, options, normalize=False):
                meter.add(vectors)
        finally:
            encoder.close()
    measured = meter.finish()
    write_json(target, dataclasses.asdict(measured), indent=None)
    return target, measured


@contextmanager
def open_texts(options: EncodingOptions) -> Iterator[Texts]:
    """The input, whichever it is."""
    if options.input != STANDARD:
        yield Texts(options.input, options.input, options.column, options.skip_bad_rows)
        return
    with standard_input(options.input_format) as path:
        yield Texts(path, "standard input", options.column, options.skip_bad_rows, f".{options.input_format}")


def load_encoder_of(options: EncodingOptions) -> Encoder:
    """The model. Where several devices share the work, each has a copy, and this one stays on the CPU."""
    devices = options.devices or []
    device = devices[0] if len(devices) == 1 else "cpu" if devices else None
    limit = options.max_tokens_per_batch
    settings = options.settings | ({} if limit is None else {"max_tokens_per_batch": limit})
    encoder = Encoder(options.source, device=device, overrides=settings)
    encoder.config.require_one_vector("`llamafactory-embed encode`")
    if options.ranges is not None and not options.calibrate:
        encoder.ranges = QuantizationRanges.read(options.ranges)
    return encoder


def decisive_settings(options: EncodingOptions, surveyed: Surveyed) -> dict[str, object]:
    """Everything on which the vectors depend, by the names of the options."""
    settings: dict[str, object] = {
        "source": f"{options.source} {revision_of_source(find_source(options.source, options.settings))}",
        **options.settings,
        "input": f"{surveyed.rows} texts {surveyed.digest}",
        "max_tokens_per_batch": options.max_tokens_per_batch,
    }
    settings |= {name: getattr(options, name) for name in ("task", "prompt", "role", "dimensions", "precision")}
    ranges = Path(options.ranges or Path(options.source, RANGES_NAME))
    if needs_ranges(options.precision) and ranges.is_file():
        settings["ranges"] = digest(ranges.read_bytes()).hex()
    return settings


def column_types(texts: Texts, report: Callable[[str], None]) -> ArrowTypes:
    """The input's columns, which a table keeps beside the vectors."""
    types = texts.known_types()
    if types is None:
        seen = ColumnTypes()
        for rows in _windows(texts.rows(), WINDOW):
            seen.add(rows)
        types = seen.finish()
    if VECTOR_COLUMN in types:
        del types[VECTOR_COLUMN]
        report(f"The output's `{VECTOR_COLUMN}` is the new one; the input's is left out.")
    mixed = [f"`{name}`" for name, kind in types.items() if kind is None]
    if mixed:
        report(f"Values of different kinds are kept as JSON: {', '.join(mixed)}.")
    return types


def _finish(
    unfinished: UnfinishedVectors,
    texts: Texts,
    surveyed: Surveyed,
    options: EncodingOptions,
    types: ArrowTypes | None,
) -> Encoded:
    """Embed what is missing, then make the output of all: with `types` a table, else the vectors alone."""
    done = unfinished.rows
    encoder = load_encoder_of(options)
    try:
        dtype, columns = _shape(encoder, options)
        unfinished.open((surveyed.rows, columns), dtype)
        for vectors in _embedded(encoder, texts, surveyed, done, options, precision=options.precision):
            unfinished.append(vectors)
    finally:
        encoder.close()
    if types is not None:
        portions = zip(_windows(texts.rows(), WINDOW), unfinished.read(WINDOW), strict=True)
        with whole_file(unfinished.target) as temporary:
            write_table(temporary, portions, types, dtype, columns)
    else:
        unfinished.take_name()
    unfinished.remove_traces()
    size = options.dimensions or encoder.dimension
    return Encoded(surveyed.rows, done, surveyed.skipped, size, str(unfinished.target))


def _encode_to(file: BinaryIO, texts: Texts, surveyed: Surveyed, options: EncodingOptions) -> Encoded:
    """The same to a stream, which cannot be continued."""
    encoder = load_encoder_of(options)
    try:
        dtype, columns = _shape(encoder, options)
        write_npy_header(file, (surveyed.rows, columns), dtype)
        for vectors in _embedded(encoder, texts, surveyed, 0, options, precision=options.precision):
            file.write(np.ascontiguousarray(vectors).tobytes())
        file.flush()
    finally:
        encoder.close()
    size = options.dimensions or encoder.dimension
    return Encoded(surveyed.rows, 0, surveyed.skipped, size, "standard output")


def _shape(encoder: Encoder, options: EncodingOptions) -> tuple[np.dtype, int]:
    """Type and number of columns; what the model cannot do is refused here, before texts are embedded."""
    none = encoder.encode([], task=options.task, role=options.role, dimensions=options.dimensions)
    encoder.ranges_for(options.precision, none.shape[1], encoder.config.normalize)
    return stored_as(options.precision, none.shape[1])


def _embedded(
    encoder: Encoder, texts: Texts, surveyed: Surveyed, done: int, options: EncodingOptions, **how: Any
) -> Iterator[np.ndarray]:
    """Embeddings of the texts after the first `done`, window by window. A window begins at a multiple of its size, so
    that a continued run packs the same texts together."""
    devices = options.devices if options.devices is not None and len(options.devices) > 1 else None
    window = WINDOW * len(devices or [""])
    how |= {"task": options.task, "prompt": options.prompt, "role": options.role, "devices": devices}
    if not options.calibrate:
        how["dimensions"] = options.dimensions
    with tqdm(total=surveyed.rows, initial=done, desc="Encoding", unit=" texts") as progress:
        for part in _windows(itertools.islice(texts, done, None), window):
            vectors = encoder.encode(part, **how)
            if vectors.dtype.kind == "f" and not np.isfinite(vectors).all():
                first = done + int((~np.isfinite(vectors)).any(axis=1).argmax()) + 1
                raise ValueError(f"The model's embedding of text {first:,} of {surveyed.rows:,} holds nan or inf.")
            yield vectors
            done += len(part)
            progress.update(len(part))


def _windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many items; the last may have fewer."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window
