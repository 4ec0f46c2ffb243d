"""Examples → one step's batch: packed texts, and which of them belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.rows import Example
from ....model.packed import PackedBatch, pack_texts


@dataclass(frozen=True)
class ContrastiveBatch:
    """B rows with K negatives each. The texts are the B queries, the B positives, then the negatives row by row."""

    packed: list[PackedBatch]
    rows: int
    negatives_per_row: int
    document_ids: Tensor  # [B + B * K], equal for equal texts, on every rank
    own_passages_only: Tensor  # [B] bool
    scores: Tensor | None  # [B, 1 + K] of a teacher, or [B, 1] of scored pairs
    task_indices: Tensor  # [B]

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings [2B + B*K, d] → queries [B, d], positives [B, d] and negatives [B, K, d]."""
        queries, positives, negatives = embeddings.split([self.rows, self.rows, self.rows * self.negatives_per_row])
        if self.negatives_per_row == 0:
            return queries, positives, None
        return queries, positives, negatives.view(self.rows, self.negatives_per_row, -1)


class ContrastiveCollator:
    """Tokenizes and packs; runs in the data loader's workers."""

    def __init__(self, tokenizer: EmbeddingTokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        negatives_per_row = self._count_negatives(examples)
        documents = [example.positive for example in examples]
        documents += [negative for example in examples for negative in example.negatives]
        instructions = [example.passage_instruction for example in examples]
        instructions += [example.passage_instruction for example in examples for _ in range(negatives_per_row)]

        texts = self.tokenizer.queries(
            [example.query for example in examples], [example.query_instruction for example in examples]
        )
        texts += self.tokenizer.documents(documents, instructions)
        packed = pack_texts([text.token_ids for text in texts], self.max_tokens, [text.pooled_from for text in texts])
        batch = ContrastiveBatch(
            packed=packed,
            rows=len(examples),
            negatives_per_row=negatives_per_row,
            document_ids=torch.tensor([text_id(text) for text in documents]),
            own_passages_only=torch.tensor([example.own_passages_only for example in examples]),
            scores=self._scores(examples),
            task_indices=torch.tensor([example.task_index for example in examples]),
        )
        # `input_ids` is what the Trainer counts tokens by.
        return {"input_ids": torch.cat([each.token_ids for each in packed]), "batch": batch}

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


def text_id(text: str) -> int:
    """A 63-bit number that equal texts share on every rank (Python's own hash differs between processes)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1
