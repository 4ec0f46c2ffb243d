"""Rows of `eval_dataset` → what `do_predict` generates from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from ...data.document_batches import IGNORED, DocumentRow
from ...diffusion.texts import DiffuSeqTokens, split_labels, texts_of_documents
from ...hparams.ddm import DiffusionTuningOptions
from ...hparams.sampling import SamplingOptions
from ...sampling.rows import PredictionRow, row_of_answer, rows_of_texts


def rows_of_documents(
    examples: Iterable[Mapping[str, Any]], options: SamplingOptions, mask_token_id: int, eos: int
) -> list[PredictionRow]:
    """One for each document. Where documents have labels, these are what is missing in them (`<gap>` in the data)."""
    documents = [DocumentRow.of_example(example, 0, place) for place, example in enumerate(examples)]
    texts = [text.token_ids for texts in texts_of_documents(documents) for text in texts]
    rows = rows_of_texts(texts, options, mask_token_id, eos)
    if options.predict_task != "infilling":
        return rows
    missing = [holes for document in documents for holes in _missing_tokens(document)]
    return [
        replace(row, label=row.tokens, holes=holes[: len(row.tokens)]) if any(holes) else row
        for row, holes in zip(rows, missing, strict=True)
    ]


def _missing_tokens(document: DocumentRow) -> Iterator[list[bool]]:
    """Which tokens each text of a row misses."""
    labels = iter(document.labels or [IGNORED] * len(document.token_ids))
    for length in document.lengths:
        yield [label != IGNORED for label in islice(labels, length)]


def rows_of_answers(
    examples: Iterable[Mapping[str, Any]],
    options: DiffusionTuningOptions,
    cutoff_len: int,
    special: DiffuSeqTokens | None,
) -> list[PredictionRow]:
    """One for each conversation, whose last answer is to be generated; `special` for `ddm_format: diffuseq`."""
    rows = []
    for number, example in enumerate(examples):
        prompt, answer = split_labels(example["input_ids"], example["labels"])
        if not answer:  # an empty one has no label to be found by
            prompt = list(example["input_ids"])
        if special is not None:
            prompt = [special.bos, *prompt, special.sep]
        if len(prompt) > cutoff_len and options.predict_task != "unconditional":
            raise ValueError(
                f"`eval_dataset`: the prompt of row {number} has {len(prompt)} tokens, more than `cutoff_len: "
                f"{cutoff_len}`: raise it, or shorten the prompt."
            )
        is_answer = [False] * len(prompt) + [True] * len(answer)
        rows.append(row_of_answer([*prompt, *answer], is_answer, options))
    return rows


def all_examples(eval_sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The rows of several sets, one after the other."""
    return [example for examples in eval_sets.values() for example in examples]
