"""Answers as clients receive them: where they stop, and how much of an unfinished one can be sent."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..sampling.sampler import Sampler


INCOMPLETE = "\ufffd"  # how a decoder shows a character of which bytes are missing
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # of a vocabulary with byte fallback
CLEANED_UP = ("n't", "'m", "'s", "'ve", "'re", "' ")  # the clean-up removes a space before these, and before . ? ! ,


def stop_strings(requested: str | Sequence[str] | None) -> list[str]:
    """The stop strings of a request: one, several or none; an empty one stops nothing."""
    strings = [requested] if isinstance(requested, str) else requested or []
    return [string for string in strings if string]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def without_begun_stop(text: str, stops: Sequence[str]) -> str:
    """An unfinished text without an end that may become a stop string."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]


class StreamedAnswer:
    """The pieces of an answer for a client that appends them.

    What was sent cannot be taken back, and decoding more tokens may change the end of what fewer tokens gave: bytes
    become characters, a run of byte tokens is valid as a whole or not at all, and a tokenizer that cleans up spaces
    moves the `.` of " ." and the `'s` of " 's" to the word before. Such ends are held back until they are settled.
    """

    def __init__(self, sampler: Sampler, stops: Sequence[str], skip_special_tokens: bool) -> None:
        self.sampler = sampler
        self.stops = stops
        self.skip_special_tokens = skip_special_tokens
        self.sent = ""

    def next_piece(self, tokens: Sequence[int], is_finished: bool) -> str:
        """What follows the earlier pieces now that these tokens are settled; often nothing."""
        text = self._finished(tokens) if is_finished else self._settled(tokens)
        if self.sent.startswith(text):
            return ""
        # The rest of a text whose beginning has changed all the same is not lost.
        unchanged = shared_beginning(self.sent, text)
        self.sent = text
        return text[unchanged:]

    def _finished(self, tokens: Sequence[int]) -> str:
        return cut_at(self.sampler.decode(tokens, self.skip_special_tokens), self.stops)

    def _settled(self, tokens: Sequence[int]) -> str:
        tokenizer = self.sampler.tokenizer
        text = self._finished(without_byte_tokens(tokens, tokenizer)).rstrip(INCOMPLETE)
        if tokenizer.clean_up_tokenization_spaces:
            text = without_loose_end(text)
        return without_begun_stop(text, self.stops)


def without_byte_tokens(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """Tokens without a run of byte tokens at the end: its decoded text is not settled before the run ends."""
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    stop = len(names)
    while stop > 0 and BYTE_TOKEN.fullmatch(names[stop - 1] or ""):
        stop -= 1
    return tokens[:stop]


def without_loose_end(text: str) -> str:
    """A text without a space at its end, or what follows it, that the clean-up may still change."""
    kept, space, word = text.rpartition(" ")
    is_loose = any(whole.startswith(word) and word != whole for whole in CLEANED_UP)
    return kept.rstrip(" ") if space and is_loose else text


def shared_beginning(one: str, other: str) -> int:
    """How many characters two texts have in common, from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
