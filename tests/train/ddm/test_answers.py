"""Rows of `stage: ddm-sft` as texts: what is padded, and what the host's templates make of conversations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.hparams import get_train_args

from llamafactory_embed.data.document_batches import DocumentRow
from llamafactory_embed.diffusion.texts import (
    DiffuSeqTokens,
    chat_text,
    diffuseq_tokens,
)
from llamafactory_embed.hparams.ddm import DiffusionTuningOptions
from llamafactory_embed.loading.predictor import choose_template
from llamafactory_embed.model.families import family_of
from llamafactory_embed.train.ddm.answers import AnswerData, ChatTexts, DiffuSeqTexts, load_answers
from tests.tiny_models import tiny_tokenizer


BOS, EOS, END_OF_LINE = 1, 2, 3
PROMPT = -100


def conversation(*turns: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """Tokens and labels as the host gives them: each turn a prompt and an answer."""
    tokens, labels = [BOS], [PROMPT]
    for prompt, answer in turns:
        tokens += prompt + answer
        labels += [PROMPT] * len(prompt) + answer
    return tokens, labels


SHORT = conversation(([10, 11, 12, 13], [20, 21, EOS]))
TWO_TURNS = conversation(([10, 11, 12], [20, 21, EOS]), ([13, 14], [22, 23, EOS]))


def rows_of(*examples: tuple[list[int], list[int]]) -> list[DocumentRow]:
    return [
        DocumentRow(tokens, [len(tokens)], epoch=0, place=place, labels=labels)
        for place, (tokens, labels) in enumerate(examples)
    ]


@pytest.mark.parametrize(("padding", "lengths"), [("never", [8, 12]), ("batch", [12, 12]), ("cutoff_len", [15, 15])])
def test_eos_padding(padding: str, lengths: list[int]) -> None:
    texts = ChatTexts(15, BOS, EOS, frozenset({EOS}), padding)(rows_of(SHORT, TWO_TURNS))
    assert [len(text) for (text,) in texts] == lengths
    first = texts[0][0]
    assert first.token_ids[8:] == [EOS] * (lengths[0] - 8)
    assert not any((first.is_prompt or [])[5:])


# --------------------------------------------------------------------------------------------------------------------
# The host's formats and templates
# --------------------------------------------------------------------------------------------------------------------

TURNS = [("what is 2+3?", "five"), ("and 4+4?", "eight")]
ALPACA = [{"instruction": TURNS[1][0], "input": "", "output": TURNS[1][1], "history": [list(TURNS[0])]}]
SHAREGPT = [
    {
        "conversations": [
            {"from": speaker, "value": text}
            for turn in TURNS
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ]
    }
]
OPENAI = [
    {
        "messages": [
            {"role": role, "content": text}
            for turn in TURNS
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    }
]
ENTRIES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "alpaca": (
        ALPACA,
        {"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}},
    ),
    "sharegpt": (SHAREGPT, {"formatting": "sharegpt", "columns": {"messages": "conversations"}}),
    "openai": (
        OPENAI,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
    ),
}


def load(folder: Path, tiny_llama: Path, dataset: str, cutoff_len: int = 512, **options: Any) -> AnswerData:
    """The answers of a data set, through the host's parser and loader."""
    for name, (rows, _) in ENTRIES.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {name: {"file_name": f"{name}.json", **entry} for name, (_, entry) in ENTRIES.items()}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    ours = {name: options.pop(name) for name in ("ddm_format", "eos_padding") if name in options}
    recipe = {
        "model_name_or_path": str(tiny_llama),
        "stage": "ddm-sft",
        "do_train": True,
        "dataset": dataset,
        "dataset_dir": str(folder),
        "cutoff_len": cutoff_len,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
        **options,
    }
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    tokenizer_module = {"tokenizer": copy.deepcopy(tiny_tokenizer()), "processor": None}
    made = DiffusionTuningOptions(**ours)
    return load_answers(made, family_of("llama"), model_args, data_args, training_args, tokenizer_module)


@pytest.mark.parametrize("dataset", ENTRIES)
def test_every_turn_is_an_answer_and_no_prompt_is_hidden(dataset: str, tiny_llama: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_llama, dataset, template="default")
    (example,) = data.train
    ((text,),) = ChatTexts(512, 0, 1, data.end_tokens, "never")([DocumentRow.of_example(example, 0, 0)])
    tokenizer = tiny_tokenizer()
    groups: list[tuple[bool, list[int]]] = []
    for token, given in zip(text.token_ids, text.is_prompt or [], strict=True):
        if not groups or groups[-1][0] != given:
            groups.append((given, []))
        groups[-1][1].append(token)
    decoded = [(given, tokenizer.decode(tokens)) for given, tokens in groups]
    assert [given for given, _ in decoded] == [True, False, True, False]
    for (_, prompt), (_, answer), (asked, said) in zip(decoded[::2], decoded[1::2], TURNS, strict=True):
        assert asked in prompt
        assert answer.strip() == f"{said}</s>"


def test_an_answer_ends_even_where_the_template_writes_no_end(tiny_llama: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_llama, "openai", template="empty")
    (example,) = data.train
    assert 1 not in example["input_ids"]
    row = DocumentRow.of_example(example, 0, 0)
    ((text,),) = ChatTexts(512, 0, 1, data.end_tokens, "never")([row])
    assert tiny_tokenizer().decode(text.token_ids).endswith(f"{TURNS[1][1]}</s>")
    assert text.token_ids[-2:] == [*example["input_ids"][-1:], 1]
    assert text.is_prompt is not None
    assert not text.is_prompt[-1]
    ((cut_short,),) = ChatTexts(3, 0, 1, data.end_tokens, "never")([row])
    assert cut_short.token_ids[-1] == 1


def test_the_template_says_what_ends_an_answer(tiny_llama: Path, tmp_path: Path) -> None:
    """Dream's answers end with a token of their own, which the tokenizer does not call EOS."""
    tokenizer = tiny_tokenizer()
    data = load(tmp_path, tiny_llama, "openai", cutoff_len=12, template="dream")
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)[-1:]
    assert tokenizer.eos_token_id in data.end_tokens
    assert len(data.end_tokens) == 2
    text = chat_text([BOS, 20, 21, 22, end, 30], [PROMPT, 20, 21, 22, end, 30], 4, bos=BOS, ends={EOS, end})
    assert text.token_ids == [BOS, 20, end, 30]


def test_a_stream_needs_a_process_that_reads_it(tiny_llama: Path, tmp_path: Path) -> None:
    streaming = {"template": "default", "streaming": True, "max_steps": 1}
    data = load(tmp_path, tiny_llama, "openai", **streaming, dataloader_num_workers=1)
    assert len(list(data.train)) == 1
    with pytest.raises(ValueError, match=r"`dataset: openai`: the stream has no rows.*`dataloader_num_workers`"):
        load(tmp_path, tiny_llama, "openai", **streaming)


def test_a_cut_row_keeps_its_answer_and_is_counted(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(tmp_path, tiny_llama, "openai", cutoff_len=12, template="default")
    (example,) = data.train
    assert len(example["input_ids"]) > 12  # the host has cut nothing
    ((text,),) = ChatTexts(12, 0, 1, data.end_tokens, "never")([DocumentRow.of_example(example, 0, 0)])
    assert tiny_tokenizer().decode(text.token_ids).strip().endswith(f"{TURNS[1][1]}</s>")
    captured = capsys.readouterr()
    assert "1 of 1 rows are longer than `cutoff_len: 12`" in captured.out + captured.err + caplog.text


def test_diffuseq_takes_the_texts_alone(tiny_llama: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_llama, "alpaca", template="alpaca", ddm_format="diffuseq")
    (example,) = data.train
    tokenizer = tiny_tokenizer()
    special = diffuseq_tokens(tokenizer)
    ((text,),) = DiffuSeqTexts(64, special)([DocumentRow.of_example(example, 0, 0)])
    source = [token for turn in TURNS for part in turn for token in tokenizer.encode(part, add_special_tokens=False)]
    target = tokenizer.encode(TURNS[-1][1], add_special_tokens=False)
    source = source[: -len(target)]
    row = [special.bos, *source, special.sep, *target, special.eos]
    assert text.token_ids == row + [special.pad] * (64 - len(row))
    assert sum(text.is_prompt or []) == len(source) + 2


def test_a_new_line_separates_where_there_is_no_separator() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode([diffuseq_tokens(tokenizer).sep]) == "\n"
    special = SimpleNamespace(eos_token_id=2, bos_token_id=None, sep_token_id=9, pad_token_id=0)
    assert diffuseq_tokens(special) == DiffuSeqTokens(bos=2, sep=9, eos=2, pad=0)


def test_the_template_is_asked_for_found_or_needed() -> None:
    chat, bare = SimpleNamespace(chat_template="{{ messages }}"), SimpleNamespace(chat_template=None)
    options = DiffusionTuningOptions()
    assert choose_template(options, None, "qwen", bare) == "qwen"
    assert choose_template(options, None, None, chat) is None
    assert choose_template(options, family_of("Dream"), None, bare) == family_of("Dream").template
    assert choose_template(DiffusionTuningOptions(ddm_format="diffuseq"), None, "qwen", chat) == "empty"
    with pytest.raises(ValueError, match="`template` is not set"):
        choose_template(options, family_of("gpt2"), None, bare)


def test_padding_of_diffuseq_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="`ddm_format: diffuseq` pads every row"):
        DiffusionTuningOptions(ddm_format="diffuseq", eos_padding="batch")
