"""The three stages of tDRO, as `llama3_s0`, `llama3_s1` and `llama3_s2_curr` have them, on a tiny Llama.

Scaled down: 20 steps, all weights learn, causal attention, EOS pooled, weight decay 0.1, a cosine down to a tenth of
the rate after two steps of warm-up. The temperature is 0.05, not 0.002, at which random tiny models have losses of
hundreds and similarities keep too few digits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from .comparison import assert_same_run
from .embedders import Embedder, last_pool, write_e5_query, write_plain
from .recording import STEPS, Recording, read_lines, record_run, scaled_down, write_retrieval_data
from .reference import Training, constant, cosine, info_nce, linear, load_model, prepare_to_learn, train


TASKS = ["nouns", "words"]
TEMPERATURE = 0.05
ACCUMULATION = 4
WEIGHTS_RATE = 0.02
TRAINING = Training(1e-3, cosine(2, STEPS, least=0.1), weight_decay=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval_data(tmp_path_factory.mktemp("data"))


def tdro_recipe(published: str, model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    shared = {
        "model_name_or_path": str(model),
        "loss_temperature": TEMPERATURE,
        "grad_cache_tokens": 256,
        "dataset": ",".join(TASKS),
        "dataset_dir": str(data),
        "query_max_length": 256,
        "document_max_length": 256,
        "cutoff_len": 256,
        "per_device_train_batch_size": 8,
        "learning_rate": TRAINING.learning_rate,
        "warmup_steps": 2,
        "max_steps": STEPS,
        "output_dir": str(output),
    }
    return scaled_down(f"tdro/{published}", **(shared | options))


def embedder(model: Any, folder: Path) -> Embedder:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Embedder(model, tokenizer, write_e5_query, write_plain, pool=last_pool, is_causal=True)


@pytest.fixture(scope="module")
def baseline(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Stage 0, the reference of stage 1."""
    return record_run(tdro_recipe("llama3_s0", tiny_llama, data, tmp_path_factory.mktemp("s0")))


@pytest.fixture(scope="module")
def proxy(tiny_llama: Path, data: Path, baseline: Recording, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Stage 1."""
    return record_run(
        tdro_recipe(
            "llama3_s1", tiny_llama, data, tmp_path_factory.mktemp("s1"), ref_model=str(baseline.output),
            num_negatives=3, per_device_train_batch_size=4, gradient_accumulation_steps=ACCUMULATION,
        )
    )  # fmt: skip


def contrastive_steps(recording: Recording, learner: Embedder) -> Any:
    """Batches of one task, each query among all positives and hard negatives."""
    for ((examples, _),) in recording.steps(1):
        assert len({example.task for example in examples}) == 1
        queries, positives, negatives = (
            learner.queries(examples), learner.positives(examples), learner.negatives(examples)
        )  # fmt: skip
        yield [info_nce(queries, positives, negatives, scale=1 / TEMPERATURE)]


def test_stage_0(baseline: Recording, tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, baseline.start)
    result = train(learned, contrastive_steps(baseline, embedder(model, tiny_llama)), TRAINING)
    assert_same_run(baseline, result, learned)


@pytest.mark.parametrize(
    "mistake",
    [
        replace(TRAINING, weight_decay=0.0),
        replace(TRAINING, weight_decay=0.09),
        replace(TRAINING, schedule=cosine(2, STEPS)),
        replace(TRAINING, schedule=cosine(2, STEPS + 1, least=0.1)),
        replace(TRAINING, schedule=linear(2, STEPS)),
        replace(TRAINING, schedule=constant),
        replace(TRAINING, betas=(0.9, 0.99)),
    ],
    ids=["no-decay", "less-decay", "down-to-0", "a-step-longer", "linear", "constant", "another-beta"],
)
def test_a_mistake_is_noticed(mistake: Training, baseline: Recording, tiny_llama: Path) -> None:
    """What these comparisons are for: a small error of schedule or decay does not pass."""
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, baseline.start)
    result = train(learned, contrastive_steps(baseline, embedder(model, tiny_llama)), mistake)
    with pytest.raises(AssertionError):
        assert_same_run(baseline, replace(result, learning_rates=baseline.learning_rates), learned)


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: the weights, in numpy (Ma et al. 2024, arXiv 2408.10613, and the released program's scaling)
# ---------------------------------------------------------------------------------------------------------------------


class WeightsInNumpy:
    """Exponentiated gradient ascent on what each task's queries lose beside the reference."""

    def __init__(self) -> None:
        self.weights = np.full(len(TASKS), 1 / len(TASKS))
        self.measures: list[np.ndarray] = []

    def measure(self, losses: np.ndarray, reference: np.ndarray, tasks: np.ndarray) -> None:
        """A micro-batch: the mean of loss / (reference / its sum over the micro-batch), by task; tiny ones are 1."""
        scaled = reference / np.abs(reference).sum()
        ratios = losses / np.where(scaled < 1e-4, 1.0, scaled)
        self.measures.append(
            np.array([ratios[tasks == task].mean() if (tasks == task).any() else 0.0 for task in range(len(TASKS))])
        )

    def update(self) -> None:
        """At an update's last micro-batch: w ∝ w exp(η g), with g the mean over micro-batches, of norm 1 at most."""
        gradient = np.mean(self.measures, axis=0)
        gradient *= min(1.0, 1.0 / (np.linalg.norm(gradient) + 1e-6))
        self.measures = []
        grown = self.weights * np.exp(WEIGHTS_RATE * gradient)
        self.weights = grown / grown.sum()


def query_losses(learner: Embedder, examples: Sequence[Any]) -> Tensor:
    """Cross entropy of each query over its own passages."""
    queries, passages = learner.queries(examples), learner.own_passages(examples)
    cosines = F.cosine_similarity(queries.unsqueeze(1), passages, dim=-1)
    return F.cross_entropy(cosines / TEMPERATURE, torch.zeros(len(examples), dtype=torch.long), reduction="none")


def test_stage_1(proxy: Recording, baseline: Recording, tiny_llama: Path) -> None:
    """The proxy learns on losses weighted by task; only an update's last micro-batch sees the new weights."""
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, proxy.start)
    learner, judge = embedder(model, tiny_llama), embedder(load_model(baseline.output), tiny_llama)
    weights = WeightsInNumpy()
    history = []

    def parts(step: list[Any]) -> Any:
        for number, (examples, _) in enumerate(step):
            losses = query_losses(learner, examples)
            tasks = np.array([TASKS.index(example.task) for example in examples])
            with torch.no_grad():
                weights.measure(losses.detach().numpy(), query_losses(judge, examples).numpy(), tasks)
            if number == len(step) - 1:
                weights.update()
                history.append(weights.weights)
            shares = torch.from_numpy(weights.weights[tasks]).float()
            yield (shares * losses).sum() / shares.sum() / ACCUMULATION

    result = train(learned, (parts(step) for step in proxy.steps(ACCUMULATION)), TRAINING)
    assert_same_run(proxy, result, learned)

    found = read_lines(proxy.output / "task_weights.jsonl")
    np.testing.assert_allclose([list(entry["weight"].values()) for entry in found], history, rtol=1e-5)
    written = json.loads((proxy.output / "curr_weights.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose([written["domain_weights"][task] for task in TASKS], history[-1], rtol=1e-5)
    assert abs(history[-1][0] - 0.5) > 1e-3  # they have moved


def test_stage_2(proxy: Recording, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """As stage 0, with tasks drawn by the weights of stage 1; here changed, to tell them from uniform ones."""
    written = json.loads((proxy.output / "curr_weights.json").read_text(encoding="utf-8"))
    written["domain_weights"] = {"nouns": 0.8, "words": 0.2}
    path = tmp_path / "curr_weights.json"
    path.write_text(json.dumps(written), encoding="utf-8")
    recording = record_run(tdro_recipe("llama3_s2_curr", tiny_llama, data, tmp_path / "s2", dataset_weights=str(path)))
    model = load_model(tiny_llama)
    learned = prepare_to_learn(model, recording.start)
    result = train(learned, contrastive_steps(recording, embedder(model, tiny_llama)), TRAINING)
    assert_same_run(recording, result, learned)
    drawn = Counter(examples[0].task for ((examples, _),) in recording.steps(1))
    assert 13 <= drawn["nouns"] <= 19, drawn  # 16 of 20 batches; by uniform weights 10
