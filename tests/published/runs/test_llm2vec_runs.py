"""LLM2Vec's three steps, as `llama2_mntp`, `llama2_simcse` and `llama2_supervised` have them, on a tiny Llama.

Scaled down: 20 steps of a schedule planned for three epochs, as the originals' 1,000 are; batches of 4; a learning
rate that a tiny model feels. LoRA has no dropout here, and neither have SimCSE's views: two implementations that lay
out a batch differently cannot share its draws. The two views of a text are then equal.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from .comparison import assert_same_run
from .embedders import Embedder, write_document, write_query
from .recording import STEPS, Recording, read_lines, record_run, scaled_down, write_lines, write_retrieval_data
from .reference import (
    Training,
    hidden_states,
    info_nce,
    linear,
    load_model,
    merge_adapter,
    predict_masked,
    prepare_to_learn,
    train,
)


RECIPES = "train_lora/llm2vec"
SCALED = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "stop_after_n_steps": STEPS}
BATCH = 4
LONGEST = 48
DOCUMENTS, DOCUMENT_LENGTH = 12, 300
PROSE = Path(__file__).parents[3] / "data" / "prose" / "train.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_retrieval_data(tmp_path_factory.mktemp("data"))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_dir` of documents, as wikitext is one."""
    folder = tmp_path_factory.mktemp("documents")
    write_lines(
        folder / "prose.jsonl", [{"text": row["text"][:DOCUMENT_LENGTH]} for row in read_lines(PROSE)[:DOCUMENTS]]
    )
    (folder / "dataset_info.json").write_text(
        '{"prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}}}', encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def mntp(tiny_llama: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The first step, whose adapter the others start from."""
    return record_run(
        scaled_down(
            f"{RECIPES}/llama2_mntp",
            **SCALED,
            model_name_or_path=str(tiny_llama),
            dataset="prose",
            dataset_dir=str(documents),
            cutoff_len=LONGEST,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            output_dir=str(tmp_path_factory.mktemp("mntp")),
        )
    )


def test_mntp(mntp: Recording, tiny_llama: Path) -> None:
    """Mean cross entropy of the hidden tokens of a batch, each predicted from the token before it."""
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, mntp.start)
    rows = rows_of_documents(AutoTokenizer.from_pretrained(tiny_llama))
    pieces = [piece for row in rows for piece in row]

    def step_losses() -> Any:
        for ((_, inputs),) in mntp.steps(1):
            texts, labels = corrupted_texts(inputs)
            assert all(clean(text, label) in pieces for text, label in zip(texts, labels, strict=True))
            losses = predict_masked(model, hidden_states(model, texts), labels)
            yield [losses.sum() / (labels[:, 1:] != -100).sum()]

    total = 3 * math.ceil(len(rows) / BATCH)
    result = train(learned, step_losses(), Training(1e-3, linear(0, total)))
    assert_same_run(mntp, result, learned)


def rows_of_documents(tokenizer: Any) -> list[list[list[int]]]:
    """Documents between BOS and EOS, in pieces that fit a row, as many of them in a row as fit."""
    rows: list[list[list[int]]] = []
    for row in read_lines(PROSE)[:DOCUMENTS]:
        text = tokenizer(row["text"][:DOCUMENT_LENGTH], add_special_tokens=False)["input_ids"]
        tokens = [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
        for piece in (tokens[start : start + LONGEST] for start in range(0, len(tokens), LONGEST)):
            if not rows or sum(map(len, rows[-1])) + len(piece) > LONGEST:
                rows.append([])
            rows[-1].append(piece)
    return rows


def corrupted_texts(inputs: dict[str, Any]) -> tuple[list[list[int]], Tensor]:
    """The texts of a micro-batch as they were hidden, and the tokens that stood there, padded with -100."""
    texts, labels = [], []
    for batch in inputs["batches"]:
        lengths = list(batch.packed.lengths)
        texts += [text.tolist() for text in batch.packed.token_ids.split(lengths)]
        labels += list(batch.labels.split(lengths))
    return texts, torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)


def clean(text: list[int], labels: Tensor) -> list[int]:
    """A text before any token was hidden."""
    return [token if label == -100 else label for token, label in zip(text, labels.tolist(), strict=False)]


def embedder_recipe(
    published: str, model: Path, adapter: Path, data: Path, output: Path, **options: Any
) -> dict[str, Any]:
    """What the second and third step share: the first's adapter is merged, and another one learns."""
    return scaled_down(
        f"{RECIPES}/{published}",
        **SCALED,
        model_name_or_path=str(model),
        adapter_name_or_path=str(adapter),
        dataset_dir=str(data),
        cutoff_len=256,
        per_device_train_batch_size=BATCH,
        output_dir=str(output),
        **options,
    )


def test_simcse(mntp: Recording, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """A text is its own positive; scale 20, no warm-up."""
    recording = record_run(
        embedder_recipe(
            "llama2_simcse", tiny_llama, mntp.output, data, tmp_path,
            dataset="texts", simcse_dropout=0.0, learning_rate=6e-4,
        )
    )  # fmt: skip
    model = load_model(tiny_llama)
    merge_adapter(model, mntp.output)
    learned = prepare_to_learn(model, recording.start)
    embedder = Embedder(model, AutoTokenizer.from_pretrained(tiny_llama), write_query, write_document)

    def step_losses() -> Any:
        for ((examples, _),) in recording.steps(1):
            assert all(example.query == example.positive for example in examples)
            queries, positives = embedder.queries(examples), embedder.positives(examples)
            yield [info_nce(queries, positives, positives[:0], scale=20)]

    result = train(learned, step_losses(), Training(6e-4, linear(0, 3 * (96 // BATCH))))
    assert_same_run(recording, result, learned)


def test_supervised(mntp: Recording, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """A hard negative a row, among the passages of the batch; scale 50; instructions are not pooled; the rate warms up
    over three tenths of the steps."""
    recording = record_run(
        embedder_recipe(
            "llama2_supervised", tiny_llama, mntp.output, data, tmp_path,
            dataset="nouns,words", warmup_steps=6, learning_rate=2e-3,
        )
    )  # fmt: skip
    model = load_model(tiny_llama)
    merge_adapter(model, mntp.output)
    learned = prepare_to_learn(model, recording.start)
    embedder = Embedder(
        model, AutoTokenizer.from_pretrained(tiny_llama), write_query, write_document, skip_instruction=True
    )

    def step_losses() -> Any:
        for ((examples, _),) in recording.steps(1):
            assert len({example.task for example in examples}) == 1
            yield [
                info_nce(
                    embedder.queries(examples), embedder.positives(examples), embedder.negatives(examples), scale=50
                )
            ]

    result = train(learned, step_losses(), Training(2e-3, linear(6, 3 * (2 * 96 // BATCH))))
    assert_same_run(recording, result, learned)
