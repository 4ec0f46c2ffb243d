"""How LLM2Vec prepares texts, for the numbers of its embeddings: documents cut by words, text tokens counted."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llamafactory_embed.data.prompts import PromptedText
from llamafactory_embed.data.tokenization import TokenizedText, find_special_tokens


def shorten_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, doc_max_length: int, max_length: int
) -> list[str]:
    """Shorten texts to `doc_max_length` tokens by whole words, as LLM2Vec does before it adds an instruction.

    While a text has too many tokens it keeps its first words in the proportion of what fits; tokens are counted up to
    `max_length` only. A text that fits keeps its white space, and a single word that does not fit becomes empty.
    """
    shortened = list(texts)
    open_indices = list(range(len(shortened)))
    while open_indices:
        counts = _count_tokens(tokenizer, [shortened[index] for index in open_indices], max_length)
        too_long = [(index, n) for index, n in zip(open_indices, counts, strict=True) if n > doc_max_length]
        for index, count in too_long:
            words = shortened[index].split()
            shortened[index] = " ".join(words[: int(len(words) * (doc_max_length / count))])
        open_indices = [index for index, _ in too_long]
    return shortened


def tokenize_and_count(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[PromptedText],
    *,
    max_length: int,
    skip_instruction: bool = True,
) -> list[TokenizedText]:
    """The whole string is cut on the right, and pooling takes as many tokens from the end as the text has when it
    stands alone. These are not the text's tokens if it tokenizes differently after an instruction, or was cut."""
    special = find_special_tokens(tokenizer, append_eos=False)
    room = max_length - len(special)
    bodies = tokenizer([text.string for text in texts], add_special_tokens=False)["input_ids"]
    rows = [[*special.leading, *body[:room], *special.trailing] for body in bodies]
    if not skip_instruction:
        return [TokenizedText(row) for row in rows]
    counts = _count_tokens(tokenizer, [text.text for text in texts], max_length)
    pooled = [count + len(special.trailing) if count else 0 for count in counts]
    return [TokenizedText(row, max(0, len(row) - count)) for row, count in zip(rows, pooled, strict=True)]


def _count_tokens(tokenizer: PreTrainedTokenizerBase, strings: list[str], limit: int) -> list[int]:
    return [min(len(ids), limit) for ids in tokenizer(strings, add_special_tokens=False)["input_ids"]]
