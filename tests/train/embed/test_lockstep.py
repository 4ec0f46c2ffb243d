"""What ranks exchange while embedders and taggers train, under engines in which all must run the same forwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory_embed.data.words.tokenization import TokenizedSentence
from llamafactory_embed.train.embed.contrastive import workflow as contrastive_workflow
from llamafactory_embed.train.embed.tdro import workflow as tdro_workflow
from llamafactory_embed.train.embed.tdro.reference_cache import example_id, fill_cache, read_losses
from llamafactory_embed.train.embed.tdro.trainer import TdroTrainer
from llamafactory_embed.train.embed.word_task import workflow as word_workflow
from llamafactory_embed.train.embed.word_task.data import WordExample, collate_words
from llamafactory_embed.train.trainer import WrappedModelTrainer
from tests.e2e.contrastive_runs import perform, recipe, write_data
from tests.e2e.tdro_runs import TDRO
from tests.embedders import make_examples
from tests.ranks import Ranks, move_to_accelerator


class TrainerBuiltError(Exception):
    """Ends a run when its trainer is there."""


Build = Callable[..., Any]


@pytest.fixture
def build(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The trainer of a recipe, whose model an engine would shard over the ranks."""

    def build_trainer(stage: str, **options: Any) -> Any:
        data = write_data(tmp_path / "data")
        rows = [{"words": ["a", "word"], "ner": ["O", "B-X"]}]
        (data / "tagged.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
        info["tagged"] = {"file_name": "tagged.jsonl", "formatting": "words"}
        (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
        built: list[WrappedModelTrainer] = []

        def stop(trainer: WrappedModelTrainer, *args: Any, **kwargs: Any) -> None:
            built.append(trainer)
            raise TrainerBuiltError

        monkeypatch.setattr(contrastive_workflow, "train_and_save", stop)
        monkeypatch.setattr(tdro_workflow, "train_and_save", stop)
        monkeypatch.setattr(word_workflow, "train_and_evaluate", stop)
        # `autograd.grad`, which keeps the ranks' gradients apart, cannot pass through reentrant checkpoints.
        plain = {"disable_gradient_checkpointing": True, "max_tokens_per_batch": 40, **options}
        with pytest.raises(TrainerBuiltError):
            perform(recipe(tiny_llama, data, tmp_path / "out", stage=stage, **plain))
        (trainer,) = built
        for name in ("is_sharded", "is_in_lockstep"):
            monkeypatch.setattr(WrappedModelTrainer, name, True)
        move_to_accelerator(trainer.model)
        return trainer

    return build_trainer


def words(count: int) -> WordExample:
    """A sentence of one token a word."""
    tokens = TokenizedSentence(
        list(range(5, 5 + count)), list(range(count)), [(each, each + 1) for each in range(count)]
    )
    return WordExample(tokens, [each % 2 for each in range(count)])


def examples(trainer: Any, rank: int) -> dict[str, Any]:
    """A micro-batch for the rank: the second one has much longer texts, and more forwards."""
    rows = [dataclasses.replace(each, task_index=number % 2) for number, each in enumerate(make_examples(4, 2))]
    if rank == 0:
        rows = [dataclasses.replace(each, query=each.query[:9], positive=each.positive[:9]) for each in rows]
    inputs = trainer.data_collator(rows)
    if hasattr(inputs["batch"], "reference_losses"):
        inputs["batch"] = dataclasses.replace(inputs["batch"], reference_losses=torch.tensor([0.5, 0.1, 0.2, 0.9]))
    return inputs


CASES: dict[str, tuple[dict[str, Any], Callable[[Any, int], dict[str, Any]]]] = {
    "contrastive": ({"stage": "contrastive", "both_directions": True}, examples),
    "contrastive-cached": ({"stage": "contrastive", "grad_cache_tokens": 40}, examples),
    "tdro": (TDRO, examples),
    "word-task": (
        {"stage": "word-task", "train_backbone": "full", "dataset": "tagged", "merge_subwords": True},
        lambda trainer, rank: collate_words([words(30 if rank else 3) for _ in range(4)]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_run_the_same_forwards_and_exchange_nothing_from_the_cpu(
    case: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, make_inputs = CASES[case]
    trainer = build(**options)
    monkeypatch.setattr(TdroTrainer, "_update_weights", lambda self: None)  # of one trainer in both threads
    inputs = [make_inputs(trainer, rank) for rank in range(2)]
    if "batch" in inputs[0]:
        assert len(inputs[0]["batch"].packed) < len(inputs[1]["batch"].packed)
    ranks = Ranks(2, monkeypatch)
    ranks.in_lockstep(trainer.model.decoder)
    learning = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}

    def step(rank: int) -> float:
        if "grad_cache_tokens" in options:
            return float(cached_step(trainer, inputs[rank]))
        loss = trainer.compute_loss(trainer.model, inputs[rank])
        gradients = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
        assert all(each is not None for each in gradients), "a parameter is missing from the graph of a rank"
        return float(loss.detach())

    losses = ranks.run(step)
    assert losses[0] != losses[1]
    assert ranks.collectives[0] == ranks.collectives[1]
    assert ranks.collectives[0].count("forward") > 3


def cached_step(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """GradCache's step, whose optimizer and scaling do not matter here."""
    step = trainer.training_step
    trainer.optimizer = SimpleNamespace(train=lambda: None)
    trainer.current_gradient_accumulation_steps = 1
    return step(trainer.model, inputs)


def test_a_missing_forward_is_noticed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: without the engine's need to be equal, ranks run their own number of forwards."""
    trainer = build(**CASES["word-task"][0])
    monkeypatch.setattr(WrappedModelTrainer, "is_in_lockstep", False)
    inputs = [CASES["word-task"][1](trainer, rank) for rank in range(2)]
    ranks = Ranks(2, monkeypatch)
    ranks.in_lockstep(trainer.model.decoder)
    with pytest.raises(AssertionError, match="rank 1 waits in forward for rank 0, which has ended"):
        ranks.run(lambda rank: trainer.compute_loss(trainer.model, inputs[rank]))


@pytest.mark.parametrize("missing", [(3, 3), (0, 3), (0, 0)], ids=["both", "one", "none"])
def test_losses_of_the_reference_are_filled_in_on_all_ranks(
    missing: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_examples(6, 1)
    parts = [rows[: missing[0]], rows[len(rows) - missing[1] :]]
    loaded: list[int] = []
    ranks = Ranks(2, monkeypatch)

    def fill(rank: int) -> dict[int, float]:
        def load() -> Any:
            loaded.append(rank)
            return lambda batch, forwards: torch.tensor([float(len(each.query)) for each in batch.examples])

        def collate(examples: Any) -> Any:
            return {"batch": SimpleNamespace(examples=examples, packed=[])}

        return fill_cache(tmp_path / "losses.safetensors", parts[rank], collate, 2, load).losses  # type: ignore[arg-type]

    expected = {example_id(each): float(len(each.query)) for part in parts for each in part}
    assert ranks.run(fill) == [expected, expected]
    assert sorted(loaded) == ([0, 1] if any(missing) else [])
    if expected:
        assert read_losses(tmp_path / "losses.safetensors") == expected
    loaded.clear()
    assert ranks.run(fill) == [expected, expected]  # now from the file
    assert loaded == []
