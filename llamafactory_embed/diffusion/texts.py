"""Token rows of diffusion training, and how answers with their prompts become such rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..data.document_batches import IGNORED, DocumentRow


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens that see one another. A prompt's tokens are never hidden."""

    token_ids: list[int]
    is_prompt: list[bool] | None = None  # None: there is no prompt
    padding: int = 0  # so many of the last tokens only fill up the row

    def __len__(self) -> int:
        return len(self.token_ids)


def split_labels(token_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """The tokens before the last answer, and that answer; the host labels answers with their own tokens."""
    end = len(labels)
    while end > 0 and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return list(token_ids[:start]), list(token_ids[start:end])


def with_end(
    token_ids: Sequence[int], labels: Sequence[int], eos: int, ends: Collection[int]
) -> tuple[list[int], list[int]]:
    """A conversation whose last answer ends: with EOS if the template wrote no end, because a model that never sees an
    end never ends."""
    _, answer = split_labels(token_ids, labels)
    missing = [] if not answer or _length_of_ending(answer, ends) else [eos]
    return [*token_ids, *missing], [*labels, *missing]


def chat_text(
    token_ids: Sequence[int], labels: Sequence[int], cutoff_len: int, *, bos: int | None, ends: Collection[int]
) -> Text:
    """A conversation of at most `cutoff_len` tokens that keeps its last answer and the end of it.

    What does not fit is taken from the front, so that old turns go first (a BOS stays). An answer that does not fit by
    itself loses tokens before its end: the token of `ends` that ends it and what the template writes after that
    survive.
    """
    is_prompt = [label == IGNORED for label in labels]
    if len(token_ids) <= cutoff_len:
        return Text(list(token_ids), is_prompt)

    before, answer = split_labels(token_ids, labels)
    first = list(token_ids[:1]) if before and token_ids[0] == bos and cutoff_len > 1 else []
    room = cutoff_len - len(first)
    if len(answer) >= room:
        ending = answer[len(answer) - _length_of_ending(answer, ends) :]
        kept = (answer[: max(0, room - len(ending))] + ending)[:room] if len(ending) <= room else ending[:room]
        return Text(first + kept, [True] * len(first) + [False] * len(kept))
    kept_before = room - len(answer)
    start = len(before) - kept_before
    end = len(before) + len(answer)
    return Text(
        first + list(token_ids[start:end]),
        [True] * len(first) + is_prompt[start:end],
    )


def _length_of_ending(answer: Sequence[int], ends: Collection[int]) -> int:
    """The tokens of an answer from the last that ends one; 0 for a template without such a token."""
    for length, token in enumerate(reversed(answer), start=1):
        if token in ends:
            return length
    return 0


@dataclass(frozen=True)
class DiffuSeqTokens:
    """The special tokens of the `diffuseq` format."""

    bos: int
    sep: int
    eos: int
    pad: int


def diffuseq_text(source: Sequence[int], target: Sequence[int], cutoff_len: int, special: DiffuSeqTokens) -> Text:
    """A row `bos source sep target eos pad…` of exactly `cutoff_len` tokens, as DiffuSeq and DiffuLLaMA have it.

    The target keeps its first tokens, and the source its last ones in the room that is left. (The original loses the
    target where it takes all the room.) Padding is part of what is learned.
    """
    if cutoff_len < 3:
        raise ValueError(f"`cutoff_len` must be at least 3 for `ddm_format: diffuseq`, not {cutoff_len}.")
    room = cutoff_len - 3
    target = list(target[:room])
    source = list(source[max(0, len(source) - (room - len(target))) :])
    prompt = [special.bos, *source, special.sep]
    row = [*prompt, *target, special.eos]
    text = Text(row, [index < len(prompt) for index in range(len(row))])
    return pad_text(text, cutoff_len, special.pad)


def pad_text(text: Text, length: int, token: int) -> Text:
    """Fill up with tokens that are learned like any other."""
    missing = length - len(text)
    if missing <= 0:
        return text
    is_prompt = text.is_prompt if text.is_prompt is not None else [False] * len(text)
    return replace(
        text,
        token_ids=text.token_ids + [token] * missing,
        is_prompt=is_prompt + [False] * missing,
        padding=text.padding + missing,
    )


def diffuseq_tokens(
    tokenizer: PreTrainedTokenizerBase, separator: str | None = None, padding: str | None = None
) -> DiffuSeqTokens:
    """The tokenizer's special tokens. Between source and target stands `separator`; if it is None, the tokenizer's
    separator token, or a new line where it has none. Rows are filled up with `padding`, or the padding token."""
    eos = tokenizer.eos_token_id
    sep = tokenizer.sep_token_id
    if separator is not None:
        sep = _one_token(tokenizer, separator, "ddm_separator")
    elif sep is None:
        newline = tokenizer.encode("\n", add_special_tokens=False)
        sep = newline[-1] if newline else eos
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    pad = tokenizer.pad_token_id if padding is None else _one_token(tokenizer, padding, "ddm_padding")
    return DiffuSeqTokens(bos=bos, sep=sep, eos=eos, pad=pad)


def _one_token(tokenizer: PreTrainedTokenizerBase, value: str, option: str) -> int:
    """A token by its number or by its text. Published models use tokens that no text becomes (a single byte)."""
    if value.isdecimal():
        number = int(value)
        if number >= len(tokenizer):
            raise ValueError(f"`{option}: {number}` is no token: the vocabulary ends at {len(tokenizer) - 1}.")
        return number
    tokens = tokenizer.encode(value, add_special_tokens=False)
    if len(tokens) != 1:
        raise ValueError(
            f"`{option}` must be one token, and {value!r} is {len(tokens)} tokens for this tokenizer: choose another "
            "text, or give a token's number."
        )
    return tokens[0]


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer read every digit as a token, in whatever it tokenizes from now on."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"`ddm_split_digits` needs a tokenizer of the library `tokenizers`, and {type(tokenizer).__name__} is "
            "written in Python: leave the option out."
        )
    backend = tokenizer.backend_tokenizer
    known = backend.pre_tokenizer
    # Digits of other scripts are several bytes in most vocabularies.
    digits = pre_tokenizers.Split(Regex("[0-9]"), behavior="isolated")
    if isinstance(known, pre_tokenizers.ByteLevel) and not known.add_prefix_space:
        steps = [digits, known]  # GPT-2: what lies between digits is a text by itself, as in DiffuLLaMA
    else:  # other steps may put something in front of a piece, which must not be each digit
        steps = [digits] if known is None else [known, digits]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def texts_of_documents(rows: Sequence[DocumentRow]) -> list[list[Text]]:
    """Each document of a row is a text of its own."""
    texts = []
    for row in rows:
        ends = accumulate(row.lengths)
        texts.append([Text(row.token_ids[end - length : end]) for length, end in zip(row.lengths, ends, strict=True)])
    return texts
