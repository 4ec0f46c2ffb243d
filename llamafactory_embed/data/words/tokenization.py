"""Words → tokens, and the tokens at which each word is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ..tokenization import filler_token, find_special_tokens, refuse_unreadable


@dataclass(frozen=True)
class TokenizedSentence:
    """Tokens of one sentence. The word with the number `words[i]` is read at the tokens of `spans[i]`."""

    token_ids: list[int]
    words: list[int]
    spans: list[tuple[int, int]]
    """First token and the one after the last, [W]."""


@dataclass(frozen=True)
class WordTokenizer:
    """Tokenizes word by word, so that no token belongs to two words."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    read_at: Literal["same_token", "next_token"]
    space_before_words: bool

    @classmethod
    def create(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        read_at: Literal["same_token", "next_token"],
        space_before_words: bool | None,
    ) -> WordTokenizer:
        if space_before_words is None:
            space_before_words = tells_words_by_spaces(tokenizer)
        return cls(tokenizer, max_length, read_at, space_before_words)

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[TokenizedSentence]:
        """Tokenize many sentences. What does not fit into `max_length` is cut on the right; a word whose first token
        is cut, or that has no token at all, is not among `words`."""
        leading, trailing = self._special_tokens()
        room = self.max_length - len(leading) - len(trailing)
        if room < 1:
            raise ValueError(f"`cutoff_len: {self.max_length}` leaves no room for a word beside the special tokens.")
        flat = [
            f" {word}" if position and self.space_before_words else word
            for sentence in sentences
            for position, word in enumerate(sentence)
        ]
        pieces = iter(self._encode(flat) if flat else [])
        shift = 1 if self.read_at == "next_token" else 0
        tokenized = []
        for sentence in sentences:
            body: list[int] = []
            words, spans = [], []
            for word in range(len(sentence)):
                start = len(body)
                body += next(pieces)
                end = min(len(body), room)
                if start < end:
                    words.append(word)
                    spans.append((len(leading) + start - shift, len(leading) + end - shift))
            token_ids = [*leading, *body[:room], *trailing] or [filler_token(self.tokenizer)]
            tokenized.append(TokenizedSentence(token_ids, words, spans))
        return tokenized

    def _encode(self, words: list[str]) -> list[list[int]]:
        try:
            return self.tokenizer(words, add_special_tokens=False)["input_ids"]
        except Exception:  # whatever the tokenizer makes of it: is one of the words the reason?
            refuse_unreadable(words, "Word", range(len(words)))
            raise

    def _special_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        special = find_special_tokens(self.tokenizer, append_eos=False)
        leading = special.leading
        if self.read_at == "next_token" and not leading:
            # The first word, too, needs a token before it.
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            first = eos if bos is None else bos
            if first is None:
                raise ValueError(
                    "`retroactive_labels: next_token` reads a sentence's first word from the token before it, and "
                    "this tokenizer has neither a `bos_token` nor an `eos_token` to put there: use `same_token`."
                )
            leading = (first,)
        return leading, special.trailing


def tells_words_by_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word without a space before it looks to the tokenizer like a part of one. Byte-level tokenizers
    distinguish `a` and ` a`; those of SentencePiece and WordPiece mark the beginning of words themselves."""
    first, *_, last = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return first != last
