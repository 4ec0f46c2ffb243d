"""`ddm_separator` and `ddm_split_digits`: the same in training, prediction and chat."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from llamafactory.chat.chat_model import ChatModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamafactory_embed.diffusion.texts import Text, diffuseq_tokens, split_digits
from llamafactory_embed.hparams.ddm import DiffusionTuningOptions
from llamafactory_embed.train.ddm import answers, prediction
from tests.e2e import token_runs
from tests.e2e.contrastive_runs import perform
from tests.tiny_models import save_tiny_model, tiny_tokenizer


MERGES = [("1", "2"), ("12", "3"), ("\u0120", "1"), ("\u01201", "2"), ("i", "n"), ("\u0120", "a")]


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of GPT-2's class, which knows 12, 123 and " 12" as tokens."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for first, second in MERGES:
        vocabulary[first + second] = len(vocabulary)
    for special in ("<|endoftext|>", "<pad>"):
        vocabulary[special] = len(vocabulary)
    return GPT2Tokenizer(vocab=vocabulary, merges=MERGES, pad_token="<pad>")


@pytest.mark.parametrize("text", ["in 12 of 123", "1234.5", " a 12b", "½ ² 3²", "٣ and 3"])
def test_every_digit_is_a_token(text: str) -> None:
    tokenizer = gpt2_tokenizer()
    pieces = [piece for token in tokenizer.tokenize(text) for piece in re.findall("[0-9]|[^0-9]+", token)]
    split_digits(tokenizer)
    after = tokenizer.tokenize(text)
    assert after == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert copy.deepcopy(tokenizer).tokenize(text) == after  # as data workers get it


def test_between_digits_are_texts_by_themselves() -> None:
    """As in DiffuLLaMA, whose program tokenizes the stretches between digits one by one."""
    tokenizer = gpt2_tokenizer()
    stretches = [tokenizer.tokenize(stretch) for stretch in ("a  ", "1", "2", "   ", "3", " a")]
    split_digits(tokenizer)
    assert tokenizer.tokenize("a  12   3 a") == [token for tokens in stretches for token in tokens]


def test_a_mark_of_words_is_not_put_before_each_digit() -> None:
    """SentencePiece's vocabularies mark the beginning of a word."""
    letters = ["\u2581", *"in0123456789"]
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    before = tokenizer.tokenize("in 123 12")
    split_digits(tokenizer)
    assert tokenizer.tokenize("in 123 12") == before


def test_text_without_digits_is_read_as_before() -> None:
    tokenizer, split = tiny_tokenizer(), copy.deepcopy(tiny_tokenizer())
    split_digits(split)
    text = (Path(__file__).parents[2] / "prose.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not re.search("[0-9]", line)]
    assert lines
    assert split(lines)["input_ids"] == tokenizer(lines)["input_ids"]


def test_digits_that_were_merged_are_split_where_one_was() -> None:
    tokenizer = gpt2_tokenizer()
    assert tokenizer.tokenize("in 123") == ["in", "\u0120", "123"]
    split_digits(tokenizer)
    assert tokenizer.tokenize("in 123") == ["in", "\u0120", "1", "2", "3"]


def test_the_separator_is_the_token_of_the_text() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode([diffuseq_tokens(tokenizer, "#").sep]) == "#"
    assert tokenizer.decode([diffuseq_tokens(tokenizer).sep]) == "\n"
    named = copy.deepcopy(tokenizer)
    named.add_special_tokens({"sep_token": "[SEP]"})
    assert diffuseq_tokens(named).sep == named.sep_token_id
    assert diffuseq_tokens(named, "#").sep == diffuseq_tokens(tokenizer, "#").sep
    for text, count in (("# #", 3), ("", 0)):
        with pytest.raises(ValueError, match=rf"`ddm_separator` must be one token, and '{text}' is {count} tokens"):
            diffuseq_tokens(tokenizer, text)


def test_a_token_may_be_given_by_its_number() -> None:
    tokenizer = tiny_tokenizer()
    by_number = diffuseq_tokens(tokenizer, "7", "9")
    assert (by_number.sep, by_number.pad) == (7, 9)
    assert diffuseq_tokens(tokenizer, padding="#").pad == diffuseq_tokens(tokenizer, "#").sep
    assert diffuseq_tokens(tokenizer).pad == tokenizer.pad_token_id
    with pytest.raises(ValueError, match="`ddm_padding: 99999` is no token: the vocabulary ends at"):
        diffuseq_tokens(tokenizer, padding="99999")


@pytest.mark.parametrize("option", ["ddm_separator", "ddm_padding"])
def test_tokens_of_diffuseq_under_a_template_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}` belongs to `ddm_format: diffuseq`"):
        DiffusionTuningOptions(**{option: "#"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=len(gpt2_tokenizer()))
    (folder / "tokenizer.json").unlink()
    gpt2_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"instruction": f"in {12 * number}", "output": f"123{number}"} for number in range(1, 9)]
    (folder / "sums.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"sums": {"file_name": "sums.json", "columns": {"prompt": "instruction", "response": "output"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


WRITTEN = {
    "stage": "ddm-sft",
    "ddm_format": "diffuseq",
    "ddm_separator": "=",
    "ddm_padding": "11",
    "ddm_split_digits": True,
}


def test_training_prediction_and_chat_write_rows_alike(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[Text] = []
    prompts: list[list[int]] = []
    write, rows_of = answers.diffuseq_text, prediction.row_of_answer

    def keep_text(*args: Any) -> Text:
        texts.append(write(*args))
        return texts[-1]

    def keep_prompt(tokens: list[int], is_answer: list[bool], options: Any) -> Any:
        prompts.append([token for token, answer in zip(tokens, is_answer, strict=True) if not answer])
        return rows_of(tokens, is_answer, options)

    monkeypatch.setattr(answers, "diffuseq_text", keep_text)
    monkeypatch.setattr(prediction, "row_of_answer", keep_prompt)
    predicting = {"do_predict": True, "eval_dataset": "sums", "max_new_tokens": 4, "diffusion_steps": 2}
    run = token_runs.recipe(
        model, data, tmp_path / "out", **WRITTEN, **predicting, dataset="sums", cutoff_len=16, max_steps=1
    )
    perform(run)

    tokenizer = gpt2_tokenizer()
    split_digits(tokenizer)
    special = diffuseq_tokens(tokenizer, "=", "11")

    def prompt_of(instruction: str) -> list[int]:
        return [special.bos, *tokenizer.encode(instruction), special.sep]

    expected = [prompt_of(f"in {12 * number}") for number in range(1, 9)]
    assert prompts == expected
    trained = [
        [token for token, given in zip(text.token_ids, text.is_prompt or [], strict=True) if given] for text in texts
    ]
    assert len(trained) >= 8
    assert all(prompt in expected for prompt in trained)
    answered = {tokenizer.decode([token for token in text.token_ids[len(prompt) :] if token != special.pad])
                for text, prompt in zip(texts, trained, strict=True)}  # fmt: skip
    assert all(text.token_ids[-1] == 11 for text in texts)
    assert answered == {f"123{number}<|endoftext|>" for number in range(1, 9)}

    engine = ChatModel(
        {"model_name_or_path": str(tmp_path / "out"), "infer_backend": "huggingface", "max_new_tokens": 4, **WRITTEN}
    ).engine
    assert engine.encode_prompt([{"role": "user", "content": "in 36"}], None, None) == prompt_of("in 36")
