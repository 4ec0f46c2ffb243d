"""`gradient_checkpointing: true` gives the gradients of a run that keeps all activations, in every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llamafactory_embed.model.around_decoder import AroundDecoder
from llamafactory_embed.train.engines import prepare_for_engines
from tests.e2e import contrastive_runs, ddm_runs, token_runs
from tests.e2e.contrastive_runs import LORA, RunResult, perform
from tests.e2e.tdro_runs import TDRO
from tests.e2e.two_ranks import largest_difference
from tests.tiny_models import tiny_model


WORDS: dict[str, Any] = {
    "stage": "word-task",
    "dataset": "words_sample",
    "dataset_dir": str(Path(__file__).parents[2] / "data"),
    "max_samples": 16,
    "train_backbone": "full",
}
STAGES: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "contrastive-lora": LORA,
    "contrastive-grad-cache": {"grad_cache_tokens": 64},
    "tdro": TDRO,
    "word-task": WORDS,
    "mntp": {"max_tokens_per_batch": 64},
    "mntp-lora-mask": {**LORA, "mask_token": "mask"},
    "ddm": {"stage": "ddm", "anneal_steps": 5},
    "ddm-sft": ddm_runs.SFT,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"rows": contrastive_runs.write_data(folder / "rows"), "texts": ddm_runs.write_data(folder / "texts")}


@pytest.fixture
def run(tiny_llama: Path, data: dict[str, Path], tmp_path: Path) -> Callable[..., RunResult]:
    """One step, in which dropout would show itself if the recomputed layers drew other numbers."""

    def perform_recipe(name: str, **options: Any) -> RunResult:
        of_texts = name.startswith(("mntp", "ddm"))
        recipe = token_runs.recipe if of_texts else contrastive_runs.recipe
        options = {"max_steps": 1, "batch_size": 4, "overwrite_output_dir": True} | STAGES[name] | options
        if "lora_rank" in options:
            options["lora_dropout"] = 0.2
        return perform(recipe(tiny_llama, data["texts" if of_texts else "rows"], tmp_path / "run", **options))

    return perform_recipe


@pytest.mark.parametrize("name", STAGES)
def test_gradients_are_equal(name: str, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    enable = AroundDecoder.gradient_checkpointing_enable

    def count(self: AroundDecoder, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        enable(self, gradient_checkpointing_kwargs)
        asked.append(self.is_gradient_checkpointing)

    monkeypatch.setattr(AroundDecoder, "gradient_checkpointing_enable", count)
    plain = run(name, disable_gradient_checkpointing=True)
    assert not asked
    found = run(name, disable_gradient_checkpointing=True, gradient_checkpointing=True)
    assert asked == [True]
    assert found.losses == pytest.approx(plain.losses, rel=1e-6)
    assert largest_difference(found.gradients, plain.gradients) < 1e-6
    assert any(bool(gradient.any()) for gradient in plain.gradients.values())


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}])
def test_layers_run_twice(kwargs: dict[str, Any] | None) -> None:
    """Once forward, once again for their gradients; and frozen embeddings keep no gradient from the layers."""
    model = AroundDecoder(tiny_model("llama")).train()
    model.get_input_embeddings().requires_grad_(False)
    calls: list[int] = []
    model.decoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(kwargs)
    model.decoder(input_ids=torch.arange(3, 9)[None], use_cache=False).last_hidden_state.sum().backward()
    assert len(calls) == 2
    assert all(bool(layer.mlp.up_proj.weight.grad.any()) for layer in model.decoder.layers)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_what_the_host_turned_on_stays() -> None:
    model = AroundDecoder(tiny_model("llama"))
    model.language_model.gradient_checkpointing_enable({"use_reentrant": True})
    before = functions(model)
    model.gradient_checkpointing_enable()
    assert functions(model) == before


def test_several_processes_never_checkpoint_reentrantly(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP would average a gradient when the first of a step's forwards has reached it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model = AroundDecoder(tiny_model("llama"))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    args: Any = type("Arguments", (), {})()
    args.ddp_find_unused_parameters = None
    args.gradient_checkpointing = True
    args.gradient_checkpointing_kwargs = {"use_reentrant": True, "preserve_rng_state": True}
    prepare_for_engines(model, args)
    assert args.ddp_broadcast_buffers is False
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False, "preserve_rng_state": True}
    assert {function.keywords["use_reentrant"] for function in functions(model)} == {False}


def functions(model: nn.Module) -> list[Any]:
    """How each layer is checkpointed."""
    return [
        each._gradient_checkpointing_func for each in model.modules() if hasattr(each, "_gradient_checkpointing_func")
    ]
