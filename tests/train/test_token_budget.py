"""A step whose memory runs out runs again in smaller forwards: as in a run that began with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.token_predictor import CorruptedText, TokenPredictor, pack_again, pack_corrupted_texts
from llamafactory_embed.train.token_budget import TokenBudget
from tests.e2e import contrastive_runs, token_runs
from tests.e2e.contrastive_runs import Recorder, RunResult


pytestmark = pytest.mark.usefixtures("single_process")

# Dropout draws random numbers, and the curves of two tasks remember their losses.
OPTIONS: dict[str, Any] = {
    "max_steps": 3, "batch_size": 4, "gradient_accumulation_steps": 2, "finetuning_type": "lora", "lora_rank": 4,
    "lora_target": "all", "lora_dropout": 0.2, "auto_token_budget": True,
}  # fmt: skip

Train = Callable[..., RunResult]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return contrastive_runs.write_data(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_runs.write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def train(tiny_llama: Path, rows: Path, documents: Path, tmp_path: Path) -> Train:
    def run(stage: str, **options: Any) -> RunResult:
        from llamafactory.train.tuner import run_exp

        module, data = (contrastive_runs, rows) if stage == "contrastive" else (token_runs, documents)
        options = OPTIONS | {"stage": stage} | options
        recorder = Recorder()
        run_exp(module.recipe(tiny_llama, data, tmp_path / str(len(list(tmp_path.iterdir()))), **options), [recorder])
        return recorder.result

    return run


class SmallMemory:
    """Has no room for more tokens than this in a forward, once so many forwards have run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, after: int = 0) -> None:
        self.tokens = tokens
        self.after = after
        self.refused = 0
        for module in (EmbeddingModel, TokenPredictor):
            monkeypatch.setattr(module, "forward", self._limited(module.forward))

    def _limited(self, forward: Any) -> Any:
        def limited(module: Any, batches: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = sum(len(getattr(each, "packed", each).token_ids) for each in batches)
            self.after -= 1
            if tokens > self.tokens and self.after < 0:
                self.refused += 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
            return forward(module, batches, *args, **kwargs)

        return limited


@pytest.mark.parametrize(
    ("stage", "small", "after", "more"),
    [("contrastive", 60, 5, contrastive_runs.OBJECTIVES), ("mntp", 60, 2, {}), ("ddm", 100, 2, {"block_size": 12})],
)
def test_a_step_runs_again_as_in_a_run_that_began_with_less(
    stage: str,
    small: int,
    after: int,
    more: dict[str, Any],
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The memory runs out in the second micro-batch of a step, in the middle of it."""
    began = train(stage, max_tokens_per_batch=small, **more)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        memory = SmallMemory(patched, tokens=small + 15, after=after)
        halved = train(stage, max_tokens_per_batch=2 * small, **more)
    assert memory.refused == 1
    said = [record.message for record in caplog.records if "Memory ran out" in record.message]
    assert len(said) == 1
    assert f"forwards of at most {small} tokens" in said[0]
    # The loss of a micro-batch that had ended is what it was then, to rounding the same; its gradient is not kept.
    np.testing.assert_allclose(halved.losses, began.losses, rtol=1e-6)
    for name, value in began.parameters.items():
        np.testing.assert_array_equal(halved.parameters[name], value, err_msg=name)


def test_steps_that_follow_begin_with_what_has_fitted(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out in the first step of five, and in none after it."""
    memory = SmallMemory(monkeypatch, tokens=75)
    train("mntp", max_tokens_per_batch=120, max_steps=5)
    assert memory.refused == 1


def test_forwards_with_backwards_of_their_own_train_the_same(train: Train) -> None:
    options = {"lora_dropout": 0.0, "max_steps": 1, "max_tokens_per_batch": 60}
    plain, split = train("mntp", auto_token_budget=False, **options), train("mntp", **options)
    assert plain.gradients
    for name, value in plain.gradients.items():
        torch.testing.assert_close(split.gradients[name], value, atol=1e-6, rtol=1e-4)


def test_a_text_that_does_not_fit_ends_the_run_in_a_sentence(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(monkeypatch, tokens=1)
    with pytest.raises(ValueError, match=r"step 1 \(DefaultCPU.*\) with forwards of one text, of up to \d+ tokens"):
        train("mntp")


@pytest.mark.parametrize(
    ("stage", "advice"),
    [
        ("contrastive", r"set `grad_cache_tokens: \d+` or `auto_token_budget: true`\. There is no checkpoint"),
        ("mntp", r"set `auto_token_budget: true`; or set `per_device_train_batch_size: 2` and `gradient_accum"),
    ],
)
def test_without_the_option_a_sentence_says_what_to_set(
    stage: str, advice: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallMemory(monkeypatch, tokens=60)
    with pytest.raises(ValueError, match=rf"Memory ran out in step 1 \(DefaultCPUAllocator.*\): {advice}"):
        train(stage, auto_token_budget=False)


def test_engines_that_wait_for_one_another_are_refused() -> None:
    from llamafactory_embed.train.token_budget import token_budget_of

    class Engine:
        is_in_lockstep = True

    with pytest.raises(ValueError, match="cannot run a step again under DeepSpeed and FSDP"):
        token_budget_of(Engine())  # type: ignore[arg-type]


def test_ranks_agree_that_one_of_them_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_embed.train.token_budget import MemoryRanOutError
    from tests.ranks import Ranks

    class Trainer:
        class args:  # noqa: N801
            device = torch.device("cpu")

    def work(rank: int) -> str:
        budget = TokenBudget(Trainer(), 100)  # type: ignore[arg-type]
        with budget.agreement():
            pass
        try:
            with budget.agreement():
                if rank == 1:
                    raise MemoryError("no room")
        except MemoryRanOutError as error:
            return str(error)
        return "nothing"

    assert Ranks(2, monkeypatch).run(work) == ["in another process", "no room"]


def test_texts_are_packed_again_as_they_would_have_been() -> None:
    texts = [
        CorruptedText(torch.arange(n) + 10, torch.arange(n) - 1, torch.rand(n), torch.arange(n).flip(0))
        for n in (3, 9, 5, 5, 2, 8)
    ]
    allowed = torch.rand(1, 1, 9, 9) > 0.5
    expected = pack_corrupted_texts(texts, 11, allowed)
    found = pack_again(pack_corrupted_texts(texts, 17, allowed), 11)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one.packed.lengths == other.packed.lengths
        for field in ("labels", "weights", "allowed"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), atol=0, rtol=0)
        for field in ("token_ids", "position_ids"):
            torch.testing.assert_close(getattr(one.packed, field), getattr(other.packed, field), atol=0, rtol=0)
