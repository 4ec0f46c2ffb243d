"""Rows of `eval_dataset` → what `do_predict` generates from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...data.document_batches import DocumentRow
from ...diffusion.texts import DiffuSeqTokens, split_labels, texts_of_documents
from ...hparams.ddm import DiffusionTuningOptions
from ...hparams.sampling import SamplingOptions
from ...sampling.rows import PredictionRow, row_of_answer, rows_of_texts


def rows_of_documents(
    examples: Iterable[Mapping[str, Any]], options: SamplingOptions, mask_token_id: int, eos: int
) -> list[PredictionRow]:
    """One for each document."""
    rows = [DocumentRow.of_example(example, 0, place) for place, example in enumerate(examples)]
    texts = [text.token_ids for texts in texts_of_documents(rows) for text in texts]
    return rows_of_texts(texts, options, mask_token_id, eos)


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
