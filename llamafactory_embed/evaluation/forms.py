"""The forms in which a checkpoint is judged: sizes to which vectors are cut, precisions in which they are stored."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..encoder.encoder import Encoder
from ..files import digest
from ..hparams.embedding import Precision
from ..model.quantization import QuantizationRanges, needs_ranges, require_ranges
from .options import EvaluationOptions
from .search import EXACT, ranks_by_bits


def forms_of(options: EvaluationOptions) -> Iterator[tuple[int | None, Precision]]:
    """Each size in each precision."""
    sizes: Sequence[int | None] = options.dimensions or [None]
    precisions: Sequence[Any] = options.precisions or ["float32"]
    return itertools.product(sizes, precisions)


def label_of(title: str, size: int | None, precision: Precision = "float32") -> str:
    """The head of a column."""
    form = [] if size is None else [str(size)]
    form += [] if precision == "float32" else [precision]
    return f"{title} ({', '.join(form)})" if form else title


def ranges_used(model: Path | Encoder, precision: Precision) -> dict[str, Any]:
    """A digest of the ranges on which results in bytes depend; refuses a checkpoint that has none."""
    if not needs_ranges(precision):
        return {}
    found = QuantizationRanges.find([model]) if isinstance(model, Path) else model.ranges
    source = model if isinstance(model, Path) else model.source
    ranges = require_ranges(found, source, precision).ranges
    return {"ranges": digest(json.dumps(ranges, sort_keys=True), size=4).hex()}


def experiment_of(
    options: EvaluationOptions, size: int | None, prompts: dict[str, str], precision: Precision = "float32"
) -> dict[str, Any]:
    """What mteb has to keep apart from the same model's other results."""
    experiment: dict[str, Any] = {}
    if size is not None:
        experiment["dimensions"] = size
    if precision != "float32":
        experiment["precision"] = precision
    if ranks_by_bits(precision):
        experiment["rescore_multiplier"] = options.rescore_multiplier
    if options.long_documents != "truncate":
        experiment["long_documents"] = options.long_documents
    if options.index != EXACT:
        experiment["index"] = options.index
    lengths = ("query_max_length", "document_max_length", "text_max_length", "top_k")
    experiment |= {name: getattr(options, name) for name in lengths if getattr(options, name) is not None}
    read_with = ("pooling", "attention", "sliding_window", "skip_instruction", "latent_heads")
    experiment |= {name: getattr(options, name) for name in read_with if getattr(options, name) is not None}
    for name in ("query_template", "document_template"):
        if getattr(options, name) is not None:
            experiment[name] = digest(getattr(options, name), size=4).hex()
    if prompts or not options.default_prompts:
        experiment["prompts"] = digest(json.dumps([sorted(prompts.items()), options.default_prompts]), size=4).hex()
    return experiment
