"""EOS after every text, for every reader of the tokenizer's files, whatever post-processor there was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llamafactory_embed.data.prompts import PromptedText
from llamafactory_embed.data.tokenization import tokenize_texts
from llamafactory_embed.export.tokenizer_files import save_tokenizer, write_merges_as_before
from tests.embedders import PROSE
from tests.tiny_models import tiny_tokenizer


LENGTH = 24
BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
BYTE_LEVEL = processors.ByteLevel(trim_offsets=True)
POST_PROCESSORS = {
    "bos": BOS,
    "none": BYTE_LEVEL,  # as Qwen's: adds nothing
    "byte level, then bos": processors.Sequence([BYTE_LEVEL, BOS]),
    "two tokens in front": processors.TemplateProcessing(
        single="<s> <pad> $A", pair="<s> <pad> $A $B", special_tokens=[("<s>", 0), ("<pad>", 2)]
    ),
    "eos already": processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    ),
}


def make_tokenizer(post_processor: processors.PostProcessor) -> PreTrainedTokenizerFast:
    backend = copy.deepcopy(tiny_tokenizer().backend_tokenizer)
    backend.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("append_eos", [False, True])
@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_files_frame_texts_as_training_did(name: str, append_eos: bool, tmp_path: Path) -> None:
    check(make_tokenizer(POST_PROCESSORS[name]), append_eos, tmp_path)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("bos", (True, True)),
        ("none", (False, True)),
        ("two tokens in front", (None, None)),
        ("eos already", (None, None)),
    ],
)
def test_flags_say_the_same_where_they_can(name: str, flags: tuple[bool | None, bool | None], tmp_path: Path) -> None:
    check(make_tokenizer(POST_PROCESSORS[name]), True, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings.get("add_bos_token"), settings.get("add_eos_token")) == flags


def test_offsets_stay_as_they_were(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(POST_PROCESSORS["byte level, then bos"])
    save_tokenizer(tokenizer, tmp_path, append_eos=True, max_length=LENGTH)
    text = "a large  animal"
    before = tokenizer.backend_tokenizer.encode(text).offsets
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).offsets[:-1] == before
    assert any(text[start] != " " and start > 0 and text[start - 1] == " " for start, _ in before)  # trimmed


def check(tokenizer: PreTrainedTokenizerFast, append_eos: bool, folder: Path) -> None:
    texts = ["", *PROSE[:3], " ".join(PROSE)]
    wanted = [
        each.token_ids
        for each in tokenize_texts(
            tokenizer, [PromptedText("", text) for text in texts], max_length=LENGTH, append_eos=append_eos
        )
    ]
    save_tokenizer(tokenizer, folder, append_eos, LENGTH)

    again = AutoTokenizer.from_pretrained(folder)
    assert again(texts[1:], truncation=True)["input_ids"] == wanted[1:]
    if append_eos:  # without a special token, an empty text has no token at all
        assert again(texts[0])["input_ids"] == wanted[0]
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))  # as text-embeddings-inference reads it
    assert (plain.truncation, plain.padding) == (None, None)
    plain.enable_truncation(LENGTH)
    assert [plain.encode(text).ids for text in texts[1:]] == wanted[1:]


def test_padding_is_on_the_right_and_has_a_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(BOS)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = None
    save_tokenizer(tokenizer, tmp_path, append_eos=False, max_length=LENGTH)
    batch = AutoTokenizer.from_pretrained(tmp_path)(["a", PROSE[0]], padding=True)
    assert batch["attention_mask"][0][:2] == [1, 1]
    assert batch["attention_mask"][0][-1] == 0
    assert tokenizer.pad_token is None  # the caller's own is left as it was
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


def test_merges_are_written_as_every_release_reads_them(tmp_path: Path) -> None:
    save_tokenizer(make_tokenizer(BOS), tmp_path, append_eos=False, max_length=LENGTH)
    merges = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    assert merges
    assert all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    with_blank = {"merges": [["a", "b"], ["a", " b"]]}
    write_merges_as_before(with_blank)
    assert with_blank == {"merges": [["a", "b"], ["a", " b"]]}
