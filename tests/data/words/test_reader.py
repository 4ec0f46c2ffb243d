"""Files of labelled words: every format gives the same sentences, and bad lines are told with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.problems import BadRowError
from llamafactory_embed.data.words.formats import Sentence, WordColumns, parse_record
from llamafactory_embed.data.words.reader import load_sentences, refuse_unseen_labels


CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
"""
CONLL_U = """# text = EU won't
1\tEU\tEU\tPROPN\tNNP\t_\t3\tnsubj\t_\t_
2-3\twon't\t_\t_\t_\t_\t_\t_\t_\t_
2\two\twill\tAUX\tMD\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

1\tPeter\tPeter\tPROPN\tNNP\t_\t0\troot\t_\t_
"""


def write(folder: Path, content: dict[str, str], **entries: dict[str, Any]) -> str:
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    info = {
        Path(name).stem: {"file_name": name, "formatting": "words"} | entries.get(Path(name).stem, {})
        for name in content
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return str(folder)


def read(folder: str, name: str, labels: str | None) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(each.words, each.labels) for each in load_sentences(name, folder, labels).sentences]


def test_columns_of_conll_2003(tmp_path: Path) -> None:
    folder = write(tmp_path, {"eng.txt": CONLL_2003})
    assert read(folder, "eng", "ner") == [(("EU", "rejects"), ("I-ORG", "O")), (("Peter",), ("I-PER",))]
    assert read(folder, "eng", "chunk")[0][1] == ("I-NP", "I-VP")
    assert read(folder, "eng", None) == [(("EU", "rejects"), ()), (("Peter",), ())]
    assert [each.line for each in load_sentences("eng", folder, "ner").sentences] == [3, 6]


def test_conll_u_gives_syntactic_words(tmp_path: Path) -> None:
    folder = write(tmp_path, {"ewt.conllu": CONLL_U})
    assert read(folder, "ewt", "upos") == [(("EU", "wo", "n't"), ("PROPN", "AUX", "PART")), (("Peter",), ("PROPN",))]
    assert read(folder, "ewt", "xpos")[0][1] == ("NNP", "MD", "RB")


@pytest.mark.parametrize("columns", [("tokens", "ner_tags"), ("words", "ner"), ("text_words", "kind")])
def test_records_with_lists(columns: tuple[str, str], tmp_path: Path) -> None:
    words, labels = columns
    row = json.dumps({words: ["EU", "rejects"], labels: ["I-ORG", "O"]})
    entry = {"columns": {"words": words, "ner": labels}} if words == "text_words" else {}
    folder = write(tmp_path, {"rows.jsonl": row + "\n"}, rows=entry)
    assert read(folder, "rows", "ner") == [(("EU", "rejects"), ("I-ORG", "O"))]


@pytest.mark.parametrize(
    ("name", "text", "labels", "sentence"),
    [
        ("a.txt", "EU NNP I-NP I-ORG\nrejects VBZ\n", "ner", r"a\.txt:2: this line has 2 columns"),
        ("a.txt", CONLL_2003, "nre", r"no column `nre`: .*did you mean `ner`\?"),
        ("a.jsonl", '{"tokens": [], "ner_tags": []}\n', "ner", r"a\.jsonl:1: the list of words is empty"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": []}\n', "ner", r"a\.jsonl:1: there are 1 words and 0 labels"),
        ("a.jsonl", '{"tokens": ["a", " "], "ner_tags": ["O", "O"]}\n', "ner", r"a\.jsonl:1: a word is not text"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n', "ner", r"a\.jsonl:1: there is no column `ner`"),
        ("a.jsonl", '{"tokens": ["a"]\n', "ner", r"a\.jsonl:1: this is not JSON"),
        ("a.jsonl", '{"tokens": ["a"], "ner": [null]}\n', "ner", r"a\.jsonl:1: the label None is neither text nor"),
        ("a.jsonl", '{"tokens": ["\\ud83d"], "ner": ["O"]}\n', "ner", r"a\.jsonl:1: `words` holds half a character"),
        ("a.jsonl", '{"tokens": ["a"], "ner": ["\\ud83d"]}\n', "ner", r"a\.jsonl:1: `labels` holds half a character"),
        ("a.conll", "\n\n", "ner", "`a` has no sentences"),
    ],
)
def test_bad_lines_are_told(name: str, text: str, labels: str, sentence: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {name: text})
    with pytest.raises(ValueError, match=sentence):
        load_sentences("a", folder, labels)


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    rows = '{"tokens": [], "ner": []}\n{"tokens": ["a"], "ner": ["O"]}\n'
    folder = write(tmp_path, {"a.jsonl": rows})
    assert [each.words for each in load_sentences("a", folder, "ner", skip_bad_rows=True).sentences] == [("a",)]


def test_labels_behind_the_last_sample_are_known(tmp_path: Path) -> None:
    folder = write(tmp_path, {"eng.txt": CONLL_2003})
    data = load_sentences("eng", folder, "ner", max_samples=1)
    assert [each.words for each in data.sentences] == [("EU", "rejects")]
    assert data.labels == ["I-ORG", "I-PER", "O"]


def test_the_bundled_sample_holds_its_names_out() -> None:
    folder = str(Path(__file__).parents[3] / "data")
    parts = [load_sentences(name, folder, "ner") for name in ("words_sample", "words_sample_heldout")]
    labels = [part.labels for part in parts]
    assert labels[0] == labels[1] == ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"]
    names = [
        {
            word
            for each in part.sentences
            for word, label in zip(each.words, each.labels, strict=True)
            if label == "B-PER"
        }
        for part in parts
    ]
    assert not names[0] & names[1]


def test_a_label_that_was_never_trained() -> None:
    sentence = Sentence(("a", "b"), ("O", "B-XYZ"), "dev.conll", 7)
    with pytest.raises(ValueError, match=r"dev\.conll:7: the label `B-XYZ` of the word `b`"):
        refuse_unseen_labels([sentence], ["B-PER", "O"])


def test_files_in_another_encoding_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"eng.txt": CONLL_2003})
    (tmp_path / "eng.txt").write_bytes(b"caf\xe9 NN I-NP O\n")
    with pytest.raises(ValueError, match=r"eng\.txt` is not UTF-8 text after its row 0"):
        load_sentences("eng", folder, "ner")


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_of_labels_must_have_a_name(number: int) -> None:
    columns = WordColumns("ner")
    assert parse_record({"words": ["a"], "ner": [1]}, columns, ["O", "B-PER"], "hub", 1).labels == ("B-PER",)
    with pytest.raises(BadRowError, match=f"the label {number} is not one of the numbers 0 to 1"):
        parse_record({"words": ["a"], "ner": [number]}, columns, ["O", "B-PER"], "hub", 1)
