"""Words of a text in any script, for the lexical reference lines and for finding answers in passages."""

from __future__ import annotations

import re
import unicodedata


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


def words(text: str) -> list[str]:
    """Lower-case words without accents; digits count, punctuation does not."""
    plain = ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return WORD.findall(unicodedata.normalize("NFKC", plain))
