"""Examples → one step's batch: tokenized texts, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.rows import Example
from ....files import digest
from ....model.packed import PackedBatch, cut_batch, pack_texts
from ....model.vector_sets import VectorSets, vectors_of_texts
from ..gather import rank
from ..losses.rows import EmbeddedRows, SetRows


@dataclass(frozen=True)
class ContrastiveBatch:
    """B rows with K negatives each. The texts are the B queries, the B positives, then the negatives row by row.

    The tokens of all texts are one tensor, cut into forwards only when they run: each tensor of a batch that a data
    worker has finished takes a file descriptor until the batch's turn comes, and a batch may have hundreds of
    forwards.
    """

    texts: PackedBatch
    max_tokens: int  # of one forward
    rows: int
    negatives_per_row: int
    passage_ids: Tensor  # [B, 1 + K], equal for equal texts, on every rank
    own_passages_only: Tensor  # [B] bool
    scores: Tensor | None  # [B, 1 + K] of a teacher, or [B, 1] of scored pairs
    task_indices: Tensor  # [B]
    teacher_vectors: Tensor | None  # [B, T, d'] of the first T of (query, positive, *negatives)
    examples: Sequence[Example] | None  # the texts themselves, where a guide has to read them
    vectors_each: tuple[int, ...] | None  # how many vectors each text has; None: one

    @property
    def packed(self) -> list[PackedBatch]:
        """The texts, one packed batch for each forward."""
        return cut_batch(self.texts, self.max_tokens)

    def with_embeddings(self, embeddings: Tensor) -> EmbeddedRows:
        """Embeddings [2B + B*K, d] of the texts → the rows as losses see them."""
        queries, positives, negatives = embeddings.split([self.rows, self.rows, self.rows * self.negatives_per_row])
        negatives = negatives.view(self.rows, self.negatives_per_row, embeddings.shape[-1])
        device = embeddings.device
        return EmbeddedRows(
            queries,
            torch.cat([positives.unsqueeze(1), negatives], dim=1),
            passage_ids=self.passage_ids.to(device),
            scores=None if self.scores is None else self.scores.to(device),
            own_passages_only=self.own_passages_only.to(device),
            first_row=rank() * self.rows,
            teacher_vectors=None if self.teacher_vectors is None else self.teacher_vectors.to(device),
        )

    def with_vectors(self, vectors: Tensor) -> SetRows:
        """The same for texts of several vectors, [V, d], text after text."""
        assert self.vectors_each is not None
        texts = VectorSets(vectors, self.vectors_each)
        rows, each = self.rows, self.negatives_per_row
        negatives = [range(2 * rows + row * each, 2 * rows + (row + 1) * each) for row in range(rows)]
        places = [place for row in range(rows) for place in (rows + row, *negatives[row])]
        device = vectors.device
        return SetRows(
            texts.pick(range(rows)),
            texts.pick(places),
            passage_ids=self.passage_ids.to(device),
            scores=None if self.scores is None else self.scores.to(device),
            own_passages_only=self.own_passages_only.to(device),
            first_row=rank() * rows,
        )


class ContrastiveCollator:
    """Tokenizes and packs; runs in the data loader's workers."""

    def __init__(self, tokenizer: EmbeddingTokenizer, max_tokens: int, keep_examples: bool = False) -> None:
        """The tokenizer's configuration says whether texts have several vectors."""
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.keep_examples = keep_examples

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        negatives_per_row = self._count_negatives(examples)
        documents = [example.positive for example in examples]
        documents += [negative for example in examples for negative in example.negatives]
        instructions = [example.passage_instruction for example in examples]
        instructions += [example.passage_instruction for example in examples for _ in range(negatives_per_row)]

        tokenized = self.tokenizer.queries(
            [example.query for example in examples], [example.query_instruction for example in examples]
        )
        tokenized += self.tokenizer.documents(documents, instructions)
        (texts,) = pack_texts([text.token_ids for text in tokenized], None, [text.pooled_from for text in tokenized])
        passages = [[example.positive, *example.negatives] for example in examples]
        batch = ContrastiveBatch(
            texts=texts,
            max_tokens=self.max_tokens,
            rows=len(examples),
            negatives_per_row=negatives_per_row,
            passage_ids=torch.tensor([[text_id(text) for text in row] for row in passages]),
            own_passages_only=torch.tensor([example.own_passages_only for example in examples]),
            scores=self._scores(examples),
            task_indices=torch.tensor([example.task_index for example in examples]),
            teacher_vectors=self._teacher_vectors(examples),
            examples=tuple(examples) if self.keep_examples else None,
            vectors_each=vectors_of_texts([texts]) if self.tokenizer.config.multi_vector else None,
        )
        return {"input_ids": texts.token_ids, "batch": batch}  # `input_ids` is what the Trainer counts tokens by

    @staticmethod
    def _count_negatives(examples: Sequence[Example]) -> int:
        counts = {len(example.negatives) for example in examples}
        if len(counts) > 1:
            raise ValueError(
                "Rows of one batch bring different numbers of negatives: give every row of "
                f"{', '.join(sorted({example.task for example in examples}))} some, or set `num_negatives: 0`."
            )
        return counts.pop()

    @staticmethod
    def _scores(examples: Sequence[Example]) -> Tensor | None:
        scores = [example.scores for example in examples]
        present = [each for each in scores if each is not None]
        if len(present) < len(scores) or len({len(each) for each in present}) != 1:
            return None
        return torch.tensor(present, dtype=torch.float32)

    @staticmethod
    def _teacher_vectors(examples: Sequence[Example]) -> Tensor | None:
        vectors = [each.teacher_vectors for each in examples]
        present = [each for each in vectors if each is not None]
        shapes, tasks = {each.shape for each in present}, {each.task for each in examples}
        if len(shapes) > 1 or (present and len(present) < len(vectors) and len(tasks) == 1):
            raise ValueError(
                f"Rows of {', '.join(sorted(tasks))} bring teacher's vectors of different sizes or for different "
                f"texts ({', '.join(map(str, sorted(shapes)))}), or some bring none: give all rows the same."
            )
        return torch.from_numpy(np.stack(present)) if len(present) == len(vectors) else None


def text_id(text: str) -> int:
    """A 63-bit number that equal texts share on every rank (Python's own hash differs between processes)."""
    return int.from_bytes(digest(text), "big") >> 1
