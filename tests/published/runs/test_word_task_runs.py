"""LLM2Vec's word tasks, as `sheared_llama_conll2003` (frozen) and `sheared_llama_conll2003_full` have them, on a tiny
Llama.

Scaled down: 20 steps of a schedule planned for several epochs, 8 sentences a step. The classifier has no dropout here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from .comparison import assert_same_run
from .recording import DATA, STEPS, record_run, scaled_down
from .reference import Training, hidden_states, linear, load_model, prepare_to_learn, train


SENTENCES = 60
BATCH = 8


def read_sentences() -> list[tuple[list[str], list[str]]]:
    """Words and labels of the first sentences of the bundled data."""
    blocks = (DATA / "words" / "train.conll").read_text(encoding="utf-8").strip().split("\n\n")[:SENTENCES]
    columns = [[line.split("\t") for line in block.splitlines()] for block in blocks]
    return [([word for word, *_ in lines], [line[-1] for line in lines]) for lines in columns]


def tokenize_words(tokenizer: Any, words: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """BOS and the tokens of the words, a space in front of all but the first; and the places at which each word is
    read: one before each of its tokens, from where masked next-token prediction predicts it."""
    tokens, spans = [tokenizer.bos_token_id], []
    for number, word in enumerate(words):
        pieces = tokenizer(f" {word}" if number else word, add_special_tokens=False)["input_ids"]
        spans.append((len(tokens) - 1, len(tokens) - 1 + len(pieces)))
        tokens += pieces
    return tokens, spans


@pytest.mark.parametrize(
    ("backbone", "epochs", "rate"), [("frozen", 10, 5e-3), ("full", 20, 5e-4)], ids=["frozen", "full"]
)
def test_word_task(backbone: str, epochs: int, rate: float, tiny_llama: Path, tmp_path: Path) -> None:
    """Mean cross entropy over the words of a batch; a word is the mean of the states that predict its tokens."""
    recording = record_run(
        scaled_down(
            f"word_task/sheared_llama_conll2003{'_full' if backbone == 'full' else ''}",
            model_name_or_path=str(tiny_llama),
            adapter_name_or_path=None,
            word_task="ner",
            retroactive_labels="next_token",
            classifier_dropout=0.0,
            dataset="words_sample",
            dataset_dir=str(DATA),
            max_samples=SENTENCES,
            learning_rate=rate,
            stop_after_n_steps=STEPS,
            output_dir=str(tmp_path),
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    sentences = read_sentences()
    names = sorted({label for _, labels in sentences for label in labels})
    by_tokens = {}
    for words, labels in sentences:
        tokens, spans = tokenize_words(tokenizer, words)
        by_tokens[tuple(tokens)] = (spans, [names.index(label) for label in labels])

    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, recording.start)
    assert any(name.startswith("backbone.") for name in learned) == (backbone == "full")
    weight, bias = learned["classifier.weight"], learned["classifier.bias"]

    def step_loss(rows: list[Any]) -> Tensor:
        texts = [tuple(row.sentence.token_ids) for row in rows]
        states = hidden_states(model, texts)
        words, labels = [], []
        for of_text, text in zip(states, texts, strict=True):
            spans, of_words = by_tokens[text]
            words += [of_text[start:end].mean(dim=0) for start, end in spans]
            labels += of_words
        return F.cross_entropy(torch.stack(words) @ weight.T + bias, torch.tensor(labels))

    step_losses = ([step_loss(rows)] for ((rows, _),) in recording.steps(1))
    training = Training(rate, linear(0, epochs * math.ceil(SENTENCES / BATCH)))
    assert_same_run(recording, train(learned, step_losses, training), learned)
