"""Prompts with answers, in the host's formats and templates, as texts of which only the answers are hidden."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras import logging
from transformers import PreTrainedTokenizerBase

from ...data.document_batches import DocumentRow
from ...diffusion.batches import TextsOfRows
from ...diffusion.texts import (
    DiffuSeqTokens,
    Text,
    chat_text,
    diffuseq_text,
    diffuseq_tokens,
    pad_text,
    split_digits,
    split_labels,
    with_end,
)
from ...hparams.ddm import DiffusionTuningOptions
from ...loading.predictor import choose_template
from ...model.families import Family


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments


logger = logging.get_logger(__name__)

UNCUT = 2**31  # a `cutoff_len` that no row reaches: the host would cut answers, and their end first


@dataclass(frozen=True)
class AnswerData:
    """Rows of the host's stage `sft`, not cut: `input_ids`, and `labels` that are -100 where a token is prompt."""

    train: Any | None
    evaluation: Any | None
    end_tokens: frozenset[int]
    """EOS, and what else the template ends an answer with."""


def load_answers(
    options: DiffusionTuningOptions,
    family: Family | None,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer_module: dict[str, Any],
) -> AnswerData:
    """Load and tokenize as the host's stage `sft` does, with its templates, tools and turns."""
    if options.ddm_split_digits:
        split_digits(tokenizer_module["tokenizer"])
    uncut = copy.copy(data_args)
    uncut.cutoff_len = UNCUT
    uncut.packing = uncut.neat_packing = False  # rows are packed anyway, and see nothing of one another
    uncut.template = choose_template(options, family, data_args.template, tokenizer_module["tokenizer"])
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], uncut)
    try:
        module = get_dataset(template, model_args, uncut, training_args, stage="sft", **tokenizer_module)
    except StopIteration as error:
        raise ValueError(
            f"`dataset: {', '.join(data_args.dataset or ())}`: the stream has no rows. LLaMA-Factory cuts a local "
            "file into `dataloader_num_workers` streams: set it to 1 or more, or leave out `streaming`."
        ) from error
    end_tokens = frozenset(template.get_stop_token_ids(tokenizer_module["tokenizer"]))
    data = AnswerData(module.get("train_dataset"), module.get("eval_dataset"), end_tokens)
    warn_of_cut_rows(data.train, data_args.cutoff_len)
    return data


def warn_of_cut_rows(rows: Any, cutoff_len: int) -> None:
    """Say how many rows lose the beginning of their prompt; a stream is not read for that."""
    if rows is None or not hasattr(rows, "__len__"):
        return
    column = rows.with_format("arrow")[:]["input_ids"]
    lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])
    too_long = int((lengths > cutoff_len).sum())
    if too_long:
        logger.warning_rank0(
            f"{too_long} of {len(lengths)} rows are longer than `cutoff_len: {cutoff_len}` (up to {lengths.max()} "
            "tokens): their answers are kept, but the beginning of their prompts is cut off."
        )


@dataclass(frozen=True)
class ChatTexts:
    """Conversations as the template writes them, followed by EOS as far as `eos_padding` says, and by one in any case
    where the template itself ends no answer (the host's `empty`)."""

    cutoff_len: int
    bos: int | None
    eos: int
    ends: frozenset[int]
    eos_padding: str

    def __call__(self, rows: Sequence[DocumentRow]) -> list[list[Text]]:
        texts = [self._text(row) for row in rows]
        lengths = {"never": 0, "batch": max(map(len, texts)), "cutoff_len": self.cutoff_len}
        return [[pad_text(text, lengths[self.eos_padding], self.eos)] for text in texts]

    def _text(self, row: DocumentRow) -> Text:
        assert row.labels is not None
        token_ids, labels = with_end(row.token_ids, row.labels, self.eos, self.ends)
        return chat_text(token_ids, labels, self.cutoff_len, bos=self.bos, ends=self.ends)


@dataclass(frozen=True)
class DiffuSeqTexts:
    """Rows `bos source sep target eos pad…`."""

    cutoff_len: int
    special: DiffuSeqTokens

    def __call__(self, rows: Sequence[DocumentRow]) -> list[list[Text]]:
        texts = []
        for row in rows:
            assert row.labels is not None
            source, target = split_labels(row.token_ids, row.labels)
            texts.append([diffuseq_text(source, target, self.cutoff_len, self.special)])
        return texts


def answer_texts(
    options: DiffusionTuningOptions, cutoff_len: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> tuple[TextsOfRows, TextsOfRows]:
    """How rows become texts, for training and for evaluation."""
    if options.ddm_format == "diffuseq":
        special = diffuseq_tokens(tokenizer, options.ddm_separator, options.ddm_padding)
        texts = DiffuSeqTexts(cutoff_len, special)
        return texts, texts
    padding = options.eos_padding or "batch"
    training = ChatTexts(cutoff_len, tokenizer.bos_token_id, tokenizer.eos_token_id, ends, padding)
    # What a batch is padded to depends on its other rows, which must not change a row's bound.
    return training, replace(training, eos_padding="never" if padding == "batch" else padding)
