"""What a client that appends receives: the pieces of a stream add up to the answer, however its tokens are decoded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamafactory_embed.sampling.sampler import Sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from llamafactory_embed.serve.texts import StreamedAnswer, cut_at, stop_strings, without_begun_stop
from tests.tiny_models import tiny_model, tiny_tokenizer


def test_a_stop_that_has_begun_is_held_back() -> None:
    assert without_begun_stop("one #", ["###", "."]) == "one "
    assert without_begun_stop("one ##", ["###", "#!"]) == "one "
    assert without_begun_stop("one", ["###"]) == "one"
    assert cut_at("one ### two. three", ["three", ".", "###"]) == "one "
    assert stop_strings(None) == stop_strings("") == []


# ---------------------------------------- decoding that changes what it gave ----------------------------------------


def cleaning_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, and with the clean-up of spaces that Llama 3's tokenizer asks for."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


def byte_fallback_tokenizer() -> PreTrainedTokenizerBase:
    """Like Llama 2's: a character that is no token is written as byte tokens."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    whole.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")


def sampler_of(tokenizer: PreTrainedTokenizerBase) -> Sampler:
    return Sampler(tiny_model("llama"), tokenizer, SamplingSettings(), mask_token=2, shift=False)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """One token a character or byte, so that the text can be cut anywhere."""
    if "▁" in tokenizer.get_vocab():
        text = text.replace(" ", "▁")
    pieces = [tokenizer(character, add_special_tokens=False)["input_ids"] for character in text]
    return [token for piece in pieces for token in piece]


def stream(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    """The pieces, token after token."""
    answer = StreamedAnswer(sampler_of(tokenizer), stops, skip_special_tokens=True)
    pieces = [answer.next_piece(tokens[:count], is_finished=False) for count in range(len(tokens) + 1)]
    return [*pieces, answer.next_piece(tokens, is_finished=True)]


TEXTS = (
    "I 'm glad, it 's so; they 've gone, we 're here. Do n't you ' see ' it ?",
    "if (a !== b) { c ( ' ' ) ; } // what . ever , n' no",
    "two  spaces  . and '  n't  ' ve  ' s",
    "中文 café \U0001f600\U0001f468\u200d\U0001f469 x",
    " begins and ends with spaces  ",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [tiny_tokenizer, cleaning_tokenizer, byte_fallback_tokenizer])
def test_pieces_add_up_to_the_answer(make: Callable[[], PreTrainedTokenizerBase], text: str) -> None:
    tokenizer = make()
    tokens = tokens_of(tokenizer, text)
    pieces = stream(tokenizer, tokens)
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces) == whole
    assert len(pieces[-1]) < len(whole) / 2  # most of it came before the end
    for end in range(len(tokens)):  # an answer may end anywhere
        whole = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        assert "".join(stream(tokenizer, tokens[:end])) == whole


def test_bytes_that_are_no_character_silence_nothing() -> None:
    """The whole run of byte tokens is invalid then, the characters before it too."""
    tokenizer = byte_fallback_tokenizer()
    broken = [byte + 1 for byte in "中文".encode()[:-1]]
    tokens = [*tokens_of(tokenizer, "so "), *broken, *tokens_of(tokenizer, " goes on")]
    assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens) == "so " + "�" * 5 + " goes on"


def test_what_follows_a_changed_beginning_is_sent() -> None:
    """A decoder that nobody has foreseen: nothing is lost, and nothing is silent for ever."""

    class Changing:
        clean_up_tokenization_spaces = False

        def convert_ids_to_tokens(self, tokens: list[int]) -> list[str]:
            return [str(token) for token in tokens]

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return ["", "one", "one two", "one too", "one too many", "one too many words"][len(tokens)]

    answer = StreamedAnswer(sampler_of(Changing()), [], True)  # type: ignore[arg-type]
    pieces = [answer.next_piece(list(range(count)), count == 5) for count in range(6)]
    assert pieces == ["", "one", " two", "oo", " many", " words"]


def test_stops_hold_in_texts_that_are_cleaned_up() -> None:
    tokenizer = cleaning_tokenizer()
    tokens = tokens_of(tokenizer, "it 's so . And ### more")
    assert "".join(stream(tokenizer, tokens, ["###"])) == "it's so. And "
