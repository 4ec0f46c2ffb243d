"""Whether a text gives an answer: its words in a passage (Acc@k), its number in the solution of a word problem, or
most of its words in a short answer (F1).

Word problems are those of GSM8K (Cobbe et al. 2021), whose answer follows `####`; short answers those of SQuAD
(Rajpurkar et al. 2016) and TriviaQA (Joshi et al. 2017).
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation

import regex


# Scripts that put no spaces between words: every character is a word of its own.
UNSPACED = (
    "\u0e00-\u0e7f"  # Thai
    "\u0e80-\u0eff"  # Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana and Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters
)
VOWEL_SIGNS = "\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"  # Arabic and Indic, no letters to `re`
WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}]|[{VOWEL_SIGNS}])+")
ACCENTS = re.compile("[\u0300-\u036f]")

DPR_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")

DEPTHS = (1, 3, 5, 10, 20, 50, 100)

MARKER = "####"
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PHRASE = re.compile(r"answer\s*(?:is|:|=)", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Lower-case words of a text in any script, without accents; digits count, punctuation does not."""
    plain = ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return WORD.findall(unicodedata.normalize("NFKC", plain))


def dpr_words(text: str) -> list[str]:
    """Words as DPR's evaluation (Karpukhin et al. 2020) counts them, which tDRO uses for MKQA: runs of letters, marks
    and digits, and every other visible character; lower case, with accents."""
    return [word.lower() for word in DPR_WORD.findall(unicodedata.normalize("NFD", text))]


def holds_answer(passage: str, answers: Iterable[str], split: Callable[[str], list[str]] = words) -> bool:
    """Whether the words of an answer stand in the passage, in their order and next to each other.

    With `words`, case, accents and punctuation do not matter, and in scripts without spaces every character is a word.
    With `dpr_words`, only case does not matter."""
    text = f" {' '.join(split(passage))} "
    return any(f" {' '.join(answer)} " in text for answer in map(split, answers) if answer)


def accuracy_at(
    ranking: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    depths: Sequence[int] = DEPTHS,
    split: Callable[[str], list[str]] = words,
) -> dict[int, float]:
    """Acc@k: the share of questions for which one of the first k passages holds an answer.

    `ranking[i]` are the passages retrieved for question i, best first, and `answers[i]` the answers that count."""
    first = []
    for passages, right in zip(ranking, answers, strict=True):
        place = next((place for place, text in enumerate(passages) if holds_answer(text, right, split)), None)
        first.append(place)
    return {depth: sum(place is not None and place < depth for place in first) / len(first) for depth in depths}


def find_answer(text: str) -> Decimal | None:
    r"""The number that a text gives as its answer: after the last `####`, in the last `\boxed{}`, after the last
    "the answer is", otherwise the last number of all. None if there is no number, or none after the marker."""
    if MARKER in text:
        return _first_number(text.rpartition(MARKER)[2].partition("\n")[0])
    boxes, phrases = _BOXED.findall(text), _PHRASE.split(text)
    for places in (boxes, phrases[1:]):
        number = _first_number(places[-1]) if places else None
        if number is not None:
            return number
    numbers = _NUMBER.findall(text)
    return _read_number(numbers[-1]) if numbers else None


def is_same_answer(prediction: str, reference: str) -> bool:
    """Whether both give the same number, however it is written: 1,234.50 and $1234.5 are one."""
    expected = find_answer(reference)
    return expected is not None and find_answer(prediction) == expected


def answer_accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The share of predictions with the reference's answer."""
    if not references:
        raise ValueError("There are no answers to mark: `references` is empty.")
    pairs = zip(predictions, references, strict=True)
    return sum(is_same_answer(*pair) for pair in pairs) / len(references)


def normalize_answer(text: str) -> str:
    """An answer as SQuAD's official evaluation compares it: lower case, without punctuation and articles, one space
    between words."""
    letters = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLE.sub(" ", letters).split())


def is_exact_match(prediction: str, references: Iterable[str]) -> bool:
    """SQuAD's exact match (EM): whether the prediction is one of the references once both are normalized."""
    return normalize_answer(prediction) in map(normalize_answer, references)


def contains_answer(prediction: str, references: Iterable[str]) -> bool:
    """Whether one of the references stands in the prediction once both are normalized, be it within a word."""
    text = normalize_answer(prediction)
    return any(answer in text for answer in map(normalize_answer, references) if answer)


def read_references(label: str) -> list[str]:
    """The answers that count as right: those of a JSON list of texts (`["Charles Darwin", "Darwin"]`), or the label
    itself."""
    try:
        answers = json.loads(label)
    except ValueError:
        return [label]
    if isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers):
        return answers
    return [label]


def answer_f1(prediction: str, references: Iterable[str]) -> float:
    """The harmonic mean of precision and recall of words, for the reference that it is largest for."""
    return max(_word_f1(normalize_answer(prediction).split(), normalize_answer(each).split()) for each in references)


def _word_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if not prediction or not reference:
        return float(prediction == reference)
    return 2 * shared / (len(prediction) + len(reference))


def _first_number(text: str) -> Decimal | None:
    match = _NUMBER.search(text.replace("$", "").replace(" ", ""))
    return _read_number(match.group()) if match else None


def _read_number(number: str) -> Decimal | None:
    try:
        return Decimal(number.replace(",", ""))
    except InvalidOperation:
        return None
