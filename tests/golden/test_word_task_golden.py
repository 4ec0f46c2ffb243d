"""Words → tokens → states → scores and loss against the numbers of LLM2Vec's word-level fork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from llamafactory_embed.data.words.formats import Sentence
from llamafactory_embed.data.words.tokenization import WordTokenizer
from llamafactory_embed.train.embed.word_task.data import collate_words, make_examples
from llamafactory_embed.train.embed.word_task.tagger import WordTagger
from tests.golden.case_files import GoldenCase, golden_cases


IGNORED = -100


def folder_of_model(case: GoldenCase) -> Path:
    """The folder that the case's sentence about its model names."""
    return case.folder_of(case.data["model"].split(" ")[0])


@golden_cases("llm2vec/word_task")
def test_words_are_tokenized_labelled_and_scored(case: GoldenCase, tmp_path: Path) -> None:
    data = case.data
    folder = folder_of_model(case)
    model_folder = case.copy_model(tmp_path / "model", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    labels = [str(number) for number in range(data["num_labels"])]
    sentences = [
        Sentence(tuple(words), tuple(map(str, tags)), "golden", number)
        for number, (words, tags) in enumerate(zip(data["sentences"], data["tags"], strict=True))
    ]
    tolerance = {"atol": data["tolerance"]["atol"], "rtol": data["tolerance"]["rtol"]}
    for subcase in data["subcases"]:
        words = WordTokenizer(tokenizer, subcase["max_seq_length"], subcase["retroactive_labels"], False)
        examples, _ = make_examples(sentences, words, labels)
        for example, expected in zip(examples, subcase["per_sentence"], strict=True):
            found = [IGNORED] * len(example.sentence.token_ids)
            for (start, _), label in zip(example.sentence.spans, example.labels, strict=True):
                found[start] = label
            assert example.sentence.token_ids == expected["input_ids"]
            assert found == expected["labels"]
            owners = [-1] * len(found)
            for word, (start, end) in zip(example.sentence.words, example.sentence.spans, strict=True):
                owners[start:end] = [word] * (end - start)
            assert owners == expected["word_ids"]
        for expected in subcase["expected"]:
            check_scores(model_folder, data, examples, expected, tolerance)


def check_scores(
    model_folder: Path,
    data: dict[str, Any],
    examples: list[Any],
    expected: dict[str, Any],
    tolerance: dict[str, float],
) -> None:
    tagger = WordTagger(
        AutoModel.from_pretrained(model_folder),
        data["num_labels"],
        sliding_window="ignore",
        merge_subwords=expected["merge_subwords"],
        dropout=0.5,
    ).eval()
    with torch.no_grad():
        tagger.classifier.weight.copy_(torch.tensor(data["classifier_weight"]))
        tagger.classifier.bias.copy_(torch.tensor(data["classifier_bias"]))
        inputs = collate_words(examples)
        groups = tagger.group(inputs["sentences"])
        states = tagger.word_states(groups)
        scores = tagger(groups)
    places = [(row, start) for row, each in enumerate(examples) for start, _ in each.sentence.spans]
    wanted = torch.tensor([expected["logits"][row][position] for row, position in places])
    if expected.get("hidden_after_merge") is not None:
        merged = torch.tensor([expected["hidden_after_merge"][row][position] for row, position in places])
        torch.testing.assert_close(states, merged, **tolerance)
    torch.testing.assert_close(scores, wanted, **tolerance)
    loss = torch.nn.functional.cross_entropy(scores, inputs["labels"])
    assert float(loss) == pytest.approx(expected["loss"], abs=tolerance["atol"], rel=tolerance["rtol"])
    assert scores.argmax(dim=-1).tolist() == expected["argmax_at_labelled_positions"]
    accuracy = (scores.argmax(dim=-1) == inputs["labels"]).float().mean()
    assert float(accuracy) == pytest.approx(expected["accuracy"])
