"""What is to be predicted: prompts, nothing at all, or the gaps of texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..hparams.sampling import SamplingOptions


GAP = re.compile(r"\[\[(\d+)\]\]")  # in a text that a user writes: a gap of so many tokens


@dataclass(frozen=True)
class PredictionRow:
    """One text to generate."""

    tokens: list[int]
    """The prompt; or the whole text, if it has holes."""
    label: list[int]
    """What the data have in its place: the answer, the rest of the text, or the text with its gaps filled."""
    holes: list[bool] | None = None
    """Which tokens are to be generated, for gaps in a text; None: what follows the prompt."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing: the text has places for gaps and no gap."""
        return self.holes is not None and not any(self.holes)

    def gaps(self) -> list[slice]:
        """Where each gap is."""
        runs = itertools.groupby(range(len(self.tokens)), key=(self.holes or [False] * len(self.tokens)).__getitem__)
        places = [list(run) for is_hole, run in runs if is_hole]
        return [slice(place[0], place[-1] + 1) for place in places]

    def show_gaps(self, tokenizer: PreTrainedTokenizerBase, mask: str) -> str:
        """The text with the mask token's name in its gaps."""
        assert self.holes is not None
        pieces: list[str] = []
        given: list[int] = []
        for token, hole in zip(self.tokens, self.holes, strict=True):
            if hole:
                pieces += [tokenizer.decode(given), mask] if given else [mask]
                given = []
            else:
                given.append(token)
        return "".join([*pieces, tokenizer.decode(given)])


def decode_part(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], part: slice) -> str:
    """The text of some tokens as it stands among the others: by themselves, SentencePiece drops their first space."""
    before, through = (
        tokenizer.decode(list(tokens[:end]), skip_special_tokens=True) for end in (part.start, part.stop)
    )
    if through.startswith(before):
        return through[len(before) :]
    return tokenizer.decode(list(tokens[part]), skip_special_tokens=True)  # a character lies across the border


def rows_of_texts(
    texts: Iterable[Sequence[int]], options: SamplingOptions, mask_token: int, end_token: int | None
) -> list[PredictionRow]:
    """Rows of plain texts (`stage: ddm`) by `predict_task`: with the first `prompt_tokens` of each as its prompt;
    without a prompt; or with its gaps, which are its mask tokens or, where there is none, `gap_tokens` in its middle.

    An end token is given, not filled. What remains of a long document may be that token alone: a complete row.
    """
    rows = []
    for text in texts:
        ended = options.predict_task == "infilling" and len(text) > 0 and text[-1] == end_token
        rows.append(_row_of_text(list(text[:-1] if ended else text), options, mask_token))
    return rows


def _row_of_text(tokens: list[int], options: SamplingOptions, mask_token: int) -> PredictionRow:
    if options.predict_task == "unconditional":
        return PredictionRow([], [])
    if options.predict_task == "prompt":
        return PredictionRow(tokens[: options.prompt_tokens], tokens[options.prompt_tokens :])
    holes = [token == mask_token for token in tokens]
    if any(holes):
        return PredictionRow(tokens, [], holes)
    return PredictionRow(tokens, tokens, _gap_in_the_middle(0, len(tokens), options.gap_tokens, len(tokens)))


def row_of_answer(tokens: Sequence[int], is_answer: Sequence[bool], options: SamplingOptions) -> PredictionRow:
    """A conversation (`stage: ddm-sft`) whose last answer is to be predicted: from nothing, from what precedes it, or
    from that and the answer around its middle. A row without an answer is all prompt; it has no gap."""
    end = len(tokens)
    if any(is_answer):
        while not is_answer[end - 1]:
            end -= 1
    start = end
    while start > 0 and is_answer[start - 1]:
        start -= 1
    if options.predict_task == "unconditional":
        return PredictionRow([], [])
    if options.predict_task == "prompt":
        return PredictionRow(list(tokens[:start]), list(tokens[start:end]))
    whole = list(tokens[:end])
    return PredictionRow(whole, whole, _gap_in_the_middle(start, end, options.gap_tokens, end))


def _gap_in_the_middle(start: int, stop: int, gap: int, length: int) -> list[bool]:
    """A gap of that many tokens in the middle of what lies from `start` to before `stop`, of a text of that length."""
    first = start + max(0, (stop - start - gap) // 2)
    last = min(stop, first + gap)
    return [first <= index < last for index in range(length)]


def parse_gaps(text: str, tokenizer: PreTrainedTokenizerBase, mask_token: int) -> tuple[list[int], list[bool]]:
    """Tokens and holes of a text in which `[[8]]` stands for a gap of eight tokens."""
    pieces = GAP.split(text)  # text, number, text, number, …, text
    if len(pieces) == 1:
        raise ValueError(f"The text {text!r} has no gap: write [[8]] where eight tokens are missing.")
    tokens: list[int] = []
    holes: list[bool] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            new = [mask_token] * int(piece)
        else:
            new = tokenizer(piece, add_special_tokens=index == 0)["input_ids"]
        tokens += new
        holes += [bool(index % 2)] * len(new)
    return tokens, holes
