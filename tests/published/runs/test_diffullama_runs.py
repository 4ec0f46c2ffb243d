"""DiffuLLaMA's adaptation and its fine-tuning on answers, on tiny models.

The recipes are `gpt2_full_ddm`, `llama2_full_ddm` and `llama2_lora_ddm-sft`.

Scaled down to 20 steps; no dropout. The loss is divided as the original's is (`loss_norm: masked`). Which tokens are
hidden, at which times, and which links attention opens are the run's own draws; what follows from them is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamafactory_embed.train.ddm import trainer as ddm_trainer
from tests.tiny_models import save_tiny_model

from .comparison import assert_same_run
from .recording import DATA, STEPS, Recording, read_lines, record_run, scaled_down, write_lines
from .reference import (
    Training,
    constant,
    cosine,
    hidden_states,
    load_model,
    predict_masked,
    prepare_to_learn,
    train,
)


BATCH = 4
LONGEST = 48
ANNEALING = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_dir` of documents, and of questions with answers."""
    folder = tmp_path_factory.mktemp("data")
    rows = read_lines(DATA / "prose" / "train.jsonl")[:24]
    write_lines(folder / "prose.jsonl", [{"text": row["text"][:200]} for row in rows])
    glosses = read_lines(DATA / "wordnet" / "gloss_to_noun.jsonl")[:40]
    answers = [{"instruction": f"word {number}", "output": row["query"][:12]} for number, row in enumerate(glosses)]
    write_lines(folder / "answers.jsonl", answers)
    (folder / "dataset_info.json").write_text(
        '{"prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}},'
        ' "answers": {"file_name": "answers.jsonl", "columns": {"prompt": "instruction", "response": "output"}}}',
        encoding="utf-8",
    )
    return folder


def recipe(published: str, model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    shared = {
        "model_name_or_path": str(model),
        "loss_norm": "masked",
        "dataset": "prose",
        "dataset_dir": str(data),
        "cutoff_len": LONGEST,
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "output_dir": str(output),
    }
    return scaled_down(published, **(shared | options))


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Tensor]]:
    """How far attention was open in each forward of a run, and the mask that was drawn."""
    drawn: list[tuple[float, Tensor]] = []
    draw: Callable[..., Tensor] = ddm_trainer.annealed_mask

    def listen(length: int, ratio: float, **options: Any) -> Tensor:
        mask = draw(length, ratio, **options)
        drawn.append((ratio, mask[0, 0]))
        return mask

    monkeypatch.setattr(ddm_trainer, "annealed_mask", listen)
    return drawn


def hidden_texts(inputs: dict[str, Any]) -> tuple[list[list[int]], Tensor, Tensor]:
    """The texts of a micro-batch as the model reads them, the tokens that stood there, and the inverse of the times at
    which they were hidden; padded with -100 and 0."""
    texts: list[list[int]] = []
    labels: list[Tensor] = []
    inverse_times: list[Tensor] = []
    for batch in inputs["batches"]:
        lengths = list(batch.packed.lengths)
        texts += [text.tolist() for text in batch.packed.token_ids.split(lengths)]
        labels += batch.labels.split(lengths)
        inverse_times += batch.weights.split(lengths)
    pad = torch.nn.utils.rnn.pad_sequence
    return texts, pad(labels, True, -100), pad(inverse_times, True, 0.0)


def diffusion_parts(model: Any, step: list[Any], allowed: Tensor | None = None) -> Any:
    """The loss of a step: the sum over hidden tokens of cross entropy / time, divided by their number (Gong et al.
    2024), over accumulated micro-batches as over one batch."""
    micro_batches = [hidden_texts(inputs) for _, inputs in step]
    hidden = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in micro_batches)
    for texts, labels, inverse_times in micro_batches:
        losses = predict_masked(model, hidden_states(model, texts, allowed), labels)
        yield (losses * inverse_times[:, 1:]).sum() / hidden


def assert_times_are_times(recording: Recording, accumulation: int) -> None:
    """What a hidden token counts is 1 / t: at time t a share t of a text is hidden."""
    times, shares = [], []
    for step in recording.steps(accumulation):
        for _, inputs in step:
            texts, labels, inverse_times = hidden_texts(inputs)
            for text, of_text, weights in zip(texts, labels, inverse_times, strict=True):
                is_hidden = of_text[1 : len(text)] != -100
                if is_hidden.any():
                    (inverse,) = weights[1 : len(text)][is_hidden].unique().tolist()
                    times.append(1 / inverse)
                    shares.append(float(is_hidden.float().mean()))
    assert min(times) > 0
    assert max(times) <= 1
    assert np.corrcoef(times, shares)[0, 1] > 0.9
    assert abs(np.mean(times) - np.mean(shares)) < 0.04
    assert 0.4 < np.mean(times) < 0.6


def test_gpt2_opens_its_attention(data: Path, tmp_path: Path, openings: list[tuple[float, Tensor]]) -> None:
    """DiffuGPT: all weights of GPT-2 and of its new mask token, attention open after half of the steps, a cosine down
    to 0 after warm-up."""
    folder = save_tiny_model(tmp_path / "gpt2", "gpt2")
    recording = record_run(
        recipe(
            "train_full/gpt2_full_ddm", folder, data, tmp_path / "run", anneal_steps=ANNEALING, warmup_steps=2,
            learning_rate=1e-3,
        )
    )  # fmt: skip
    model = load_model(folder)
    learned = prepare_to_learn(model, recording.start)
    assert [ratio for ratio, _ in openings] == pytest.approx([(step + 1) / ANNEALING for step in range(ANNEALING - 1)])
    masks = [mask for _, mask in openings] + [None] * STEPS
    result = train(
        learned,
        (diffusion_parts(model, step, mask) for step, mask in zip(recording.steps(1), masks, strict=False)),
        Training(1e-3, cosine(2, STEPS)),
    )
    assert_times_are_times(recording, 1)
    assert_same_run(recording, result, learned, without_effect=without_key_bias)


def without_key_bias(name: str, value: Tensor) -> Tensor:
    """A bias of the keys adds the same to all scores of a query: the softmax does not see it."""
    if not name.endswith("c_attn.bias"):
        return value
    queries, _, values = value.chunk(3)
    return torch.cat([queries, values])


@pytest.fixture(scope="module")
def adapted(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """DiffuLLaMA, from which fine-tuning starts."""
    return record_run(
        recipe(
            "train_full/llama2_full_ddm", tiny_llama, data, tmp_path_factory.mktemp("llama"), anneal_steps=1,
            per_device_train_batch_size=2, learning_rate=1e-3,
        )
    )  # fmt: skip


def test_llama_accumulates(adapted: Recording, tiny_llama: Path) -> None:
    """A constant rate, weight decay 0.1, betas 0.9 and 0.95, four accumulated micro-batches."""
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, adapted.start)
    result = train(
        learned,
        (diffusion_parts(model, step) for step in adapted.steps(4)),
        Training(1e-3, constant, weight_decay=0.1, betas=(0.9, 0.95)),
    )
    assert_times_are_times(adapted, 4)
    assert_same_run(adapted, result, learned)


def test_llama_learns_to_answer(adapted: Recording, data: Path, tmp_path: Path) -> None:
    """LoRA and a whole word embedding on rows `bos source sep target eos pad…` of one length, of which the target
    and what follows is hidden and learned; epochs in the schedule, down to 0."""
    epochs = STEPS * BATCH // 40
    recording = record_run(
        recipe(
            "train_lora/llama2_lora_ddm-sft", adapted.output, data, tmp_path, dataset="answers", lora_rank=4,
            lora_alpha=8, warmup_steps=2, learning_rate=1e-3, max_steps=None, num_train_epochs=float(epochs),
            ddm_separator="=", ddm_padding="11",  # tokens of the tiny model; the published numbers are Llama 2's
        )
    )  # fmt: skip
    assert epochs * math.ceil(40 / BATCH) == STEPS
    assert any("embed_tokens" in name for name in recording.start)
    model = load_model(adapted.output)
    learned = prepare_to_learn(model, recording.start)
    for _, inputs in recording.micro_batches:
        assert {len(text) for text in hidden_texts(inputs)[0]} == {LONGEST}
    result = train(
        learned,
        (diffusion_parts(model, step) for step in recording.steps(1)),
        Training(1e-3, cosine(2, STEPS)),
    )
    assert_same_run(recording, result, learned)
