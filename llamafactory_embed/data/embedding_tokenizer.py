"""Texts of an embedder → tokens, the same way in training, evaluation and serving."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..model.embedding_config import EmbeddingConfig
from .prompts import parse_template, prompt_texts
from .tokenization import SpecialTokens, TokenizedText, find_special_tokens, tokenize_texts


class EmbeddingTokenizer:
    """A tokenizer together with the prompts, lengths, EOS and mask tokens of an embedder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EmbeddingConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._masks = mask_ids(tokenizer, config)
        self._query_template = parse_template(config.query_template, "query_template")
        self._document_template = parse_template(config.document_template, "document_template")
        if wraps(self._query_template.with_instruction, self._document_template.with_instruction):
            without = self._document_template.without_instruction
            self._query_template = dataclasses.replace(self._query_template, without_instruction=without)

    def queries(
        self, texts: Sequence[str], instructions: Sequence[str] | str = "", first_number: int = 0
    ) -> list[TokenizedText]:
        """Tokenize queries, with one instruction each or one for all. Error messages count from `first_number`."""
        limit, numbers = self.config.query_max_length, range(first_number, first_number + len(texts))
        return self._tokenize(texts, instructions, numbers, symmetric=True, max_length=limit)

    def documents(
        self, texts: Sequence[str], instructions: Sequence[str] | str = "", first_number: int = 0
    ) -> list[TokenizedText]:
        """Tokenize documents. Those of symmetric tasks carry the task's instruction and are written like queries."""
        limit, numbers = self.config.document_max_length, range(first_number, first_number + len(texts))
        if isinstance(instructions, str):
            return self._tokenize(texts, instructions, numbers, symmetric=bool(instructions), max_length=limit)

        tokenized: list[TokenizedText] = [TokenizedText([])] * len(texts)
        for symmetric in (True, False):
            indices = [index for index, each in enumerate(instructions) if bool(each) == symmetric]
            part = self._tokenize(
                [texts[index] for index in indices],
                [instructions[index] for index in indices],
                [numbers[index] for index in indices],
                symmetric=symmetric,
                max_length=limit,
            )
            for index, text in zip(indices, part, strict=True):
                tokenized[index] = text
        return tokenized

    def _tokenize(
        self,
        texts: Sequence[str],
        instructions: Sequence[str] | str,
        numbers: Sequence[int],
        *,
        symmetric: bool,
        max_length: int,
    ) -> list[TokenizedText]:
        template = self._query_template if symmetric else self._document_template
        return tokenize_texts(
            self.tokenizer,
            prompt_texts(texts, instructions, template),
            max_length=max_length,
            append_eos=self.config.append_eos,
            append_masks=self._masks,
            skip_instruction=self.config.skip_instruction,
            numbers=numbers,
            special=self._special,
        )

    @functools.cached_property
    def _special(self) -> SpecialTokens:
        """A tokenizer that the caller changes after the first text is another one."""
        return find_special_tokens(self.tokenizer, self.config.append_eos)


def mask_ids(tokenizer: PreTrainedTokenizerBase, config: EmbeddingConfig) -> list[int]:
    """The tokens that `pooling: mask` reads: a training has recorded which; else they are the tokenizer's mask."""
    if config.pooling != "mask":
        return []
    name = config.mask_token or tokenizer.mask_token
    vocabulary = tokenizer.get_vocab()
    if name not in vocabulary:
        missing = "its tokenizer has no mask token" if name is None else f"its tokenizer has no token {name!r}"
        raise ValueError(f"`pooling: mask` appends a token, and {missing}: name one that it has in `mask_token`.")
    return [vocabulary[name]] * (config.mask_tokens or 1)


def wraps(query_template: str, document_template: str) -> bool:
    """Whether a query is written like a document, but for its instruction (a chat's marks around both): then a query
    without an instruction is written like a document. Otherwise it stays as it is."""
    if "{instruction}" not in query_template or "{instruction}" in document_template:
        return False
    before, after = document_template.split("{text}")
    return query_template.startswith(before) and query_template.endswith(after)
