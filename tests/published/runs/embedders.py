"""What the reference runs of embedders share: a batch of examples, written, tokenized and embedded anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .reference import Prompted, causal, hidden_states, mean_pool, tokenize


# How the recipes of a chat model write queries and documents.
QUERY, DOCUMENT = "[INST] {instruction}; {text} [/INST]", "[INST] {text} [/INST]"


def write_query(text: str, instruction: str) -> Prompted:
    """By the template above; without an instruction a query is written like a document."""
    return Prompted(f"[INST] {instruction}; " if instruction else "[INST] ", text, " [/INST]")


def write_document(text: str) -> Prompted:
    return Prompted("[INST] ", text, " [/INST]")


def write_e5_query(text: str, instruction: str) -> Prompted:
    return Prompted(f"Instruct: {instruction}\nQuery: ", text)


def write_plain(text: str) -> Prompted:
    return Prompted("", text)


@dataclass(frozen=True)
class Embedder:
    """A model with a tokenizer and a way to write, read and pool texts; embeddings [texts, d]."""

    model: PreTrainedModel
    tokenizer: Any
    query: Callable[[str, str], Prompted]
    document: Callable[[str], Prompted]
    skip_instruction: bool = False
    pool: Callable[[Tensor, Sequence[Sequence[bool]]], Tensor] = mean_pool
    is_causal: bool = False

    def queries(self, examples: Sequence[Any]) -> Tensor:
        return self._embed([self.query(each.query, each.query_instruction) for each in examples])

    def positives(self, examples: Sequence[Any]) -> Tensor:
        return self._embed([self.document(each.positive) for each in examples])

    def negatives(self, examples: Sequence[Any]) -> Tensor:
        """Row by row, [B * K, d]."""
        return self._embed([self.document(text) for each in examples for text in each.negatives])

    def own_passages(self, examples: Sequence[Any]) -> Tensor:
        """The positive and then the negatives of each row, [B, 1 + K, d]."""
        texts = [self.document(text) for each in examples for text in (each.positive, *each.negatives)]
        return self._embed(texts).unflatten(0, (len(examples), -1))

    def _embed(self, texts: Sequence[Prompted]) -> Tensor:
        rows = [tokenize(self.tokenizer, text, eos=self.is_causal) for text in texts]
        tokens = [row for row, _ in rows]
        counts = [belongs if self.skip_instruction else [True] * len(row) for row, belongs in rows]
        longest = max(map(len, tokens))
        return self.pool(hidden_states(self.model, tokens, causal(longest) if self.is_causal else None), counts)


def last_pool(states: Tensor, counts: Sequence[Sequence[bool]]) -> Tensor:
    """The state of each text's last token."""
    return torch.stack([text[len(row) - 1] for text, row in zip(states, counts, strict=True)])
