"""Prompts and tokenization: what survives truncation, one EOS for every tokenizer, and which tokens are the text's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, PythonBackend

from llamafactory_embed.data import tokenization
from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.data.prompts import TEMPLATES, PromptedText, parse_template, prompt_texts
from llamafactory_embed.data.tokenization import (
    find_special_tokens,
    tokenize_texts,
)
from llamafactory_embed.hparams.embedding import EmbeddingOptions
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from tests import tiny_models
from tests.tiny_models import tiny_tokenizer


BOS, EOS = "<s>", "</s>"

# Boundaries of every sort: merged with the instruction's space, with a word of it, white space, bytes, nothing.
TEXTS = ["stone wall", "the water", " ahead", "", "水 ÿé 🙂", "a", "ing of the sea", "\n\nline", "the " * 40]
INSTRUCTIONS = ["", "Find the thing", "Find:", "Given a long question about the sea and the ship, find it", "水"]
FORMS = ["{instruction} {text}", "Instruct: {instruction}\nQuery: {text}", "{instruction}{text}"]


def with_special_tokens(template: str) -> PreTrainedTokenizerBase:
    """The tiny tokenizer with another post-processor."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[(BOS, 0), (EOS, 1), ("<pad>", 2)]
    )
    return tokenizer


def with_trimmed_offsets() -> PreTrainedTokenizerBase:
    """Like Llama-3's: a token's characters leave out the space in front."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[(BOS, 0)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


def with_metaspace() -> PreTrainedTokenizerBase:
    """Like Llama-2's and Mistral's: spaces are ▁, and a text gets one in front that it does not have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    special = [BOS, EOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(Path(tiny_models.__file__).with_name("prose.txt").read_text().splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>")


class SlowTokenizer(PythonBackend):
    """The tiny tokenizer as one that knows no character positions."""

    def __init__(self, **kwargs: Any) -> None:
        self._fast = tiny_tokenizer()
        super().__init__(bos_token=BOS, eos_token=EOS, pad_token="<pad>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._fast)

    def get_vocab(self) -> dict[str, int]:
        return self._fast.get_vocab()

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._fast.tokenize(text, add_special_tokens=False)

    def _convert_token_to_id(self, token: str) -> int:
        return self._fast.convert_tokens_to_ids(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._fast.convert_ids_to_tokens(index)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [self._fast.bos_token_id, *token_ids_0]


# What stands before a text, then the tokenizer; behind every text there must be one EOS.
TOKENIZERS = {
    "bos": ([0], tiny_tokenizer),  # Llama-3
    "nothing": ([], lambda: with_special_tokens("$A")),  # Qwen2
    "eos": ([], lambda: with_special_tokens("$A </s>")),
    "bos_and_eos": ([0], lambda: with_special_tokens("<s> $A </s>")),
    "slow": ([0], SlowTokenizer),
    "slow_eos": ([], ByT5Tokenizer),
}


def all_prompts() -> list[PromptedText]:
    return [
        parse_template(form).render(text, instruction)
        for form in FORMS
        for instruction in INSTRUCTIONS
        for text in TEXTS
    ]


@pytest.mark.parametrize(("leading", "make_tokenizer"), TOKENIZERS.values(), ids=TOKENIZERS.keys())
@pytest.mark.parametrize("max_length", [3, 9, 500])
def test_one_eos_after_truncation(leading: list[int], make_tokenizer: Any, max_length: int) -> None:
    tokenizer = make_tokenizer()
    prompts = all_prompts()
    rows = tokenize_texts(tokenizer, prompts, max_length=max_length, append_eos=True)
    for prompt, row in zip(prompts, rows, strict=True):
        text_ids = tokenizer(prompt.string, add_special_tokens=False)["input_ids"]
        room = max_length - len(leading) - 1
        assert row.token_ids == [*leading, *text_ids[:room], tokenizer.eos_token_id]


def test_a_tokenizer_that_ends_texts_its_own_way_gets_no_eos() -> None:
    """Qwen3-Embedding's post-processor adds the end of text, which is not its EOS."""
    special = find_special_tokens(with_special_tokens("$A <pad>"), append_eos=True)
    assert special.leading == ()
    assert special.trailing == (2,)


@pytest.mark.parametrize("max_length", [6, 14, 500])
def test_slow_and_fast_tokenizers_agree(max_length: int) -> None:
    prompts = all_prompts() + [PromptedText("Find: ", text, " <in> the end") for text in TEXTS]
    fast, slow = (
        tokenize_texts(tokenizer, prompts, max_length=max_length, append_eos=True, skip_instruction=True)
        for tokenizer in (tiny_tokenizer(), SlowTokenizer())
    )
    assert fast == slow


@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, with_trimmed_offsets, with_metaspace])
def test_pooling_starts_where_the_text_starts(make_tokenizer: Any) -> None:
    """What lies before holds characters of the instruction only, what lies behind holds the whole text."""
    tokenizer = make_tokenizer()
    prompts = all_prompts()
    rows = tokenize_texts(tokenizer, prompts, max_length=500, skip_instruction=True)
    for prompt, row in zip(prompts, rows, strict=True):
        before = tokenizer.decode(row.token_ids[1 : row.pooled_from])
        pooled = tokenizer.decode(row.token_ids[row.pooled_from :])
        if prompt.text:
            assert prompt.prefix.startswith(before.lstrip(" ")), prompt
            assert pooled.strip(" ").endswith(prompt.text.strip(" ")), prompt
            # a token that holds both is the text's: here at most one character of the prefix
            assert len(pooled) - len(prompt.text) <= 1, (prompt, pooled)
        else:
            assert row.pooled_from == len(row.token_ids)


@pytest.mark.parametrize("max_length", [6, 14, 30])
def test_truncation_leaves_no_instruction_in_the_pooled_tokens(max_length: int) -> None:
    prompts = all_prompts()
    whole = tokenize_texts(tiny_tokenizer(), prompts, max_length=500, skip_instruction=True)
    cut = tokenize_texts(tiny_tokenizer(), prompts, max_length=max_length, skip_instruction=True)
    assert any(row.pooled_from == len(row.token_ids) for row in cut)
    for long, short in zip(whole, cut, strict=True):
        assert short.token_ids == long.token_ids[:max_length]
        assert short.pooled_from == min(long.pooled_from, len(short.token_ids))


def test_truncation_takes_from_the_text_and_keeps_prefix_suffix_and_eos() -> None:
    tokenizer = tiny_tokenizer()
    prompt = PromptedText("<user>\n", "the water of the sea " * 9, "\n<end>")
    (row,) = tokenize_texts(tokenizer, [prompt], max_length=40, append_eos=True, skip_instruction=True)
    assert len(row.token_ids) == 40
    string = tokenizer.decode(row.token_ids)
    assert string.startswith(f"{BOS}<user>\nthe water")
    assert string.endswith(f"\n<end>{EOS}")
    assert tokenizer.decode(row.token_ids[row.pooled_from :]).startswith("the water")

    (row,) = tokenize_texts(tokenizer, [prompt], max_length=5, append_eos=True, skip_instruction=True)
    assert len(row.token_ids) == 5
    assert row.pooled_from == 5


def test_an_empty_text_gets_a_token() -> None:
    (row,) = tokenize_texts(with_special_tokens("$A"), [PromptedText("", "")], max_length=4, skip_instruction=True)
    assert row.token_ids == [1]
    assert tokenize_texts(tiny_tokenizer(), [], max_length=4) == []


def test_special_tokens_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are none: that is an answer, too."""
    options = EmbeddingOptions(query_template="e5")
    made = EmbeddingTokenizer(with_special_tokens("$A"), EmbeddingConfig.from_options(options, cutoff_len=32))
    first = made.queries(["a text"], "Find it")
    monkeypatch.setattr(tokenization, "find_special_tokens", lambda *_: pytest.fail("they were looked for again"))
    assert made.queries(["a text"], "Find it") == first


def test_impossible_lengths_and_tokenizers_are_refused() -> None:
    texts = [PromptedText("", "sea")]
    with pytest.raises(ValueError, match=r"`max_length` is 2, but .* it must be at least 3"):
        tokenize_texts(tiny_tokenizer(), texts, max_length=2, append_eos=True)
    without_eos = with_special_tokens("$A")
    without_eos.eos_token = None
    with pytest.raises(ValueError, match="need a tokenizer with an `eos_token`"):
        tokenize_texts(without_eos, texts, max_length=9, append_eos=True)
    assert len(tokenize_texts(without_eos, texts, max_length=9)) == 1


def test_templates() -> None:
    e5 = parse_template("e5")
    assert e5.render("low {text}", " find {instruction} ").string == (
        "Instruct: find {instruction}\nQuery: low {text}"  # what users write is not a template
    )
    assert e5.render("low water").string == "low water"
    assert parse_template("query: {text}").render("sea").prefix == "query: "
    chat = parse_template("<user>{instruction} {text}<end>").render("sea", "find")
    assert (chat.prefix, chat.text, chat.suffix) == ("<user>find ", "sea", "<end>")

    texts = prompt_texts(["a", "b"], ["one", ""], parse_template("llm2vec"))
    assert [text.string for text in texts] == ["one a", "b"]
    assert prompt_texts(["a"], "one", parse_template("llm2vec_e5_data"))[0].string == "one; a"


@pytest.mark.parametrize("template", ["Query:", "{text} {text}", "e6"])
def test_a_template_needs_one_text(template: str) -> None:
    with pytest.raises(
        ValueError, match=f"`doc_template` must contain {{text}} once, or be one of {', '.join(TEMPLATES)}"
    ):
        parse_template(template, option="doc_template")


def test_an_unknown_place_in_a_template_is_named() -> None:
    with pytest.raises(ValueError, match=r"`query_template` may hold .* not \{instuction\}"):
        parse_template("{instuction} {text}")
