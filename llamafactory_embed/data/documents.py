"""Documents → rows of tokens: cut into pieces that fit and laid end to end, without losing any.

A row holds several pieces with their lengths; attention keeps them apart, so that no document sees another. (The
host's stage `pt` joins documents into blocks that cross their borders, and drops an incomplete last block.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..host.documents import load_pretraining_data
from .document_batches import IGNORED
from .gaps import GAP_MARK, tokenize_with_gap
from .tokenization import find_special_tokens


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

LLAMA3_END_OF_TEXT = "<|end_of_text|>"  # its chat models name another token as EOS


@dataclass(frozen=True)
class DocumentData:
    """Rows with the columns `input_ids` and `lengths`; without `lengths`, a row is one document."""

    train: Any | None
    evaluation: Any | None
    """One set, or several by their names (`eval_on_each_dataset`)."""


def load_documents(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    line_by_line: bool,
    packing: bool,
    with_gaps: bool = False,
) -> DocumentData:
    """Load and tokenize the data that `dataset`, `eval_dataset`, `val_size`, `streaming` and `tokenized_path` name.

    `with_gaps`: a row's answer is missing where its text has `<gap>`, and the column `labels` holds it there.
    """
    if tokenizer.eos_token is None:
        raise ValueError("Documents end with an EOS token, which this tokenizer lacks: set its `eos_token`.")
    processor = partial(DocumentProcessor, line_by_line=line_by_line, packing=packing, with_gaps=with_gaps)
    module = load_pretraining_data(processor, model_args, data_args, training_args, tokenizer)
    return DocumentData(module.get("train_dataset"), module.get("eval_dataset"))


@dataclass
class DocumentProcessor:
    """What the host's loader calls with batches of its standard format."""

    template: Any
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    data_args: DataArguments
    line_by_line: bool
    packing: bool
    with_gaps: bool = False

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Texts → rows. Empty documents are left out and counted."""
        texts = [messages[0]["content"] for messages in examples["_prompt"]]
        documents = [part for text in texts for part in (text.splitlines() if self.line_by_line else [text])]
        filled = [document for document in documents if document.strip()]
        if len(filled) < len(documents) and not self.line_by_line:
            logger.warning("%d of %d documents are empty and are left out.", len(documents) - len(filled), len(texts))
        if self.with_gaps:
            answers = [
                response[0]["content"] if response else None
                for text, response in zip(texts, examples["_response"], strict=True)
                if text.strip()
            ]
            return self._rows_with_gaps(filled, answers)
        pieces = [piece for tokens in self._tokenize(filled) for piece in cut(tokens, self.data_args.cutoff_len)]
        return self._rows(pieces)

    def _rows(self, pieces: Sequence[Sequence[int]]) -> dict[str, list[list[int]]]:
        rows = pack_pieces(pieces, self.data_args.cutoff_len) if self.packing else [[piece] for piece in pieces]
        return {
            "input_ids": [[token for piece in row for token in piece] for row in rows],
            "lengths": [[len(piece) for piece in row] for row in rows],
        }

    def _rows_with_gaps(self, documents: list[str], answers: list[str | None]) -> dict[str, list[list[int]]]:
        """Rows that hold the answers where the texts have gaps, with labels for their tokens."""
        leading, eos = self._special_tokens()
        pieces: list[Sequence[int]] = []
        labels: list[int] = []
        for text, answer, tokens in zip(documents, answers, self._tokenize(documents), strict=True):
            holes = [False] * len(tokens)
            if answer is not None and GAP_MARK in text:
                whole, missing = tokenize_with_gap(self.tokenizer, text, answer, leading)
                tokens, holes = [*whole, eos], [*missing, False]
                self._refuse_long_text(text, tokens)
            pieces += cut(tokens, self.data_args.cutoff_len)
            labels += [token if hole else IGNORED for token, hole in zip(tokens, holes, strict=True)]
        rows = self._rows(pieces)
        remaining = iter(labels)
        return rows | {"labels": [list(islice(remaining, len(tokens))) for tokens in rows["input_ids"]]}

    def _refuse_long_text(self, text: str, tokens: Sequence[int]) -> None:
        if len(tokens) > self.data_args.cutoff_len:
            raise ValueError(
                f"`eval_dataset`: the text {text[:40]!r}… with its answer has {len(tokens)} tokens, more than "
                f"`cutoff_len: {self.data_args.cutoff_len}`: raise it, or leave the row out."
            )

    def print_data_example(self, example: dict[str, list[int]]) -> None:
        """Print the first row, in the form of the host's processors."""
        print(f"lengths:\n{example['lengths']}")
        print(f"inputs:\n{self.tokenizer.decode(example['input_ids'], skip_special_tokens=False)}")

    def _tokenize(self, documents: list[str]) -> Iterator[list[int]]:
        """Token ids of each document, after the tokenizer's leading special tokens and before EOS."""
        if not documents:
            return
        leading, eos = self._special_tokens()
        encoded = self.tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for body in encoded["input_ids"]:
            yield [*leading, *body, eos]

    def _special_tokens(self) -> tuple[list[int], int]:
        """Those that a document starts with, and the one that ends it."""
        eos_token = LLAMA3_END_OF_TEXT if self.data_args.template == "llama3" else self.tokenizer.eos_token
        leading = find_special_tokens(self.tokenizer, append_eos=False).leading
        return list(leading), self.tokenizer.convert_tokens_to_ids(eos_token)


def cut(tokens: Sequence[int], limit: int) -> list[Sequence[int]]:
    """A document in pieces of `limit` tokens; the last may be shorter."""
    return [tokens[start : start + limit] for start in range(0, len(tokens), limit)]


def pack_pieces(pieces: Iterable[Sequence[int]], limit: int) -> list[list[Sequence[int]]]:
    """Pieces in their order, as many per row as fit into `limit` tokens; the last row may be shorter."""
    rows: list[list[Sequence[int]]] = []
    room = 0
    for piece in pieces:
        if len(piece) > room:
            rows.append([])
            room = limit
        rows[-1].append(piece)
        room -= len(piece)
    return rows
