"""What `stage: tdro` refuses, each with one sentence, before any weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.hparams import make_options
from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.tdro import reference, workflow
from tests.e2e.contrastive_runs import LATENT, LORA, RunResult, perform, recipe, write_data
from tests.e2e.tdro_runs import TDRO
from tests.tiny_models import save_tiny_model


Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("refused"))
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    rows = [{"query": f"query {n}", "positive": f"positive {n}", "negative": [f"a {n}", f"b {n}"]} for n in range(3)]
    (folder / "three.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    info["three"] = {"file_name": "three.jsonl", "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    weights = {"unknown.json": {"nouns": 0.5, "words": 0.3, "verbs": 0.2}, "missing.json": {"nouns": 1.0, "verbs": 1}}
    for name, content in weights.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def run(tiny_llama: Path, data: Path, tmp_path: Path) -> Run:
    """Perform a recipe; `{data}` in an option is the folder of the data."""

    def perform_recipe(**options: Any) -> RunResult:
        own = {key: value.format(data=data) if isinstance(value, str) else value for key, value in options.items()}
        return perform(recipe(tiny_llama, data, tmp_path / "out", **{**TDRO, **own}))

    return perform_recipe


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a step size of 0": ({"tdro_lr": 0.0}, r"`tdro_lr` .* must be above 0, not 0\.0"),
    "a negative step size": ({"tdro_lr": -1.0}, r"`tdro_lr` .* must be above 0, not -1\.0"),
    "one task": ({"dataset": "nouns"}, "`dataset` holds one task, `nouns`"),
    "a small task": (
        {"dataset": "nouns,three", "num_negatives": 4},
        "task `three` has 3 rows, fewer than `num_negatives: 4`",
    ),
    "a task without negatives": ({"dataset": "nouns,repeating"}, "task `repeating` has no negatives"),
    "no negatives asked": ({"num_negatives": 0}, "set `num_negatives` to at least 1"),
    "a stream": ({"streaming": True}, "`streaming`: a stream does not tell the size"),
    "one row without negatives": (
        {"num_negatives": 0, "tdro_in_batch_negatives": True, "batch_size": 1},
        "`per_device_train_batch_size: 1` without negatives leaves a query nothing to be compared with",
    ),
    "no training": ({"do_train": False, "do_eval": True, "eval_dataset": "nouns_heldout"}, "set `do_train: true`"),
    "adapters of no model": ({"ref_model_adapters": "saves/s0"}, "`ref_model_adapters` needs `ref_model`"),
    "start weights of other tasks": (
        {"tdro_start_weights": "{data}/missing.json"},
        "missing.json has tasks that the recipe does not have: verbs; and no weight above 0 for: words",
    ),
    "no start weights": ({"tdro_start_weights": "unifrom"}, "`tdro_start_weights` must be uniform, or a JSON file"),
    "weights of other tasks": (
        {"dataset_weights": "{data}/missing.json"},
        "lists tasks that the recipe does not have: verbs, and these tasks of the recipe have no weight: words",
    ),
    "weights of more tasks": ({"dataset_weights": "{data}/unknown.json"}, "that the recipe does not have: verbs"),
    "batches of one task": ({"task_batching": "mixed"}, "`task_batching` is an option of `stage: contrastive`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(case: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(workflow, "load_tokenizer", load)
    options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        run(**options)


@pytest.fixture(scope="module")
def another_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has a token more."""
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path_factory.mktemp("other"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["something"])
    tokenizer.save_pretrained(folder)
    return folder


def test_another_tokenizer_is_refused(run: Run, another_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the reference was loaded")

    monkeypatch.setattr(reference, "create_ref_model", load)
    with pytest.raises(ValueError, match=r"`ref_model: .*` has another tokenizer than `model_name_or_path: "):
        run(ref_model=str(another_tokenizer), tdro_cache_reference=True)


@pytest.fixture(scope="module")
def checkpoints(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embedders to refer to: causal, with trained pooling, and an adapter."""
    folder = tmp_path_factory.mktemp("checkpoints")
    kinds: dict[str, dict[str, Any]] = {"causal": {"attention": "causal", "pooling": "eos"}, "adapter": LORA}
    for name, options in kinds.items():
        perform(recipe(tiny_llama, data, folder / name, **options, max_steps=1))
    return folder


def test_references_that_do_not_fit(run: Run, checkpoints: Path, tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="was trained with `attention: causal`, `pooling: eos`: set the recipe alike"):
        run(ref_model=str(checkpoints / "causal"))
    with pytest.raises(ValueError, match=r"has no pooler\.safetensors, which `pooling: latent` needs"):
        run(ref_model=str(tiny_llama), **LATENT)
    with pytest.raises(ValueError, match=r"`pooling: latent` is trained together with the adapter"):
        run(**LATENT, **LORA)


@pytest.mark.parametrize("engine", ["is_deepspeed_zero3_enabled", "is_fsdp_enabled"])
def test_a_second_model_in_shards_is_refused(
    engine: str, run: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"llamafactory_embed.train.embed.tdro.reference.{engine}", lambda: True)
    with pytest.raises(ValueError, match="`ref_model` is a second whole model, which ZeRO-3 and FSDP would cut"):
        run(ref_model=str(tiny_llama))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tdro_norm": 0.5}, "`tdro_norm` must be 0"),
        ({"tdro_top_percents": [70, 0]}, "`tdro_top_percents` must lie between 1 and 100, not 0"),
        (
            {"tdro_optimizer": "adamw", "tdro_momentum": 0.9},
            "`tdro_momentum` belongs to `tdro_optimizer: sgd`, not to adamw",
        ),
        ({"tdro_beta2": 0.9}, "`tdro_beta2` belongs to `tdro_optimizer: adamw`, not to sgd"),
        (
            {"tdro_optimizer": "adafactor", "tdro_epsilon": 1e-6},
            "`tdro_epsilon` belongs to `tdro_optimizer: adamw or rmsprop or adagrad`, not to adafactor",
        ),
        ({"tdro_warmup_ratio": 0.1}, "have no effect under `tdro_scheduler: constant`"),
        (
            {"tdro_scheduler": "linear", "tdro_warmup_ratio": 0.1, "tdro_warmup_steps": 5},
            "`tdro_warmup_steps` and `tdro_warmup_ratio` say the same",
        ),
        (
            {"tdro_in_batch_negatives": True, "tdro_cache_reference": True},
            "`tdro_cache_reference` keeps a loss for each row",
        ),
        ({"tdro_warmup_steps": 5}, "have no effect under `tdro_scheduler: constant`"),
        ({"tdro_measure": "ratoi"}, "did you mean `ratio`"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], sentence: str) -> None:
    import dataclasses

    defaults = {field.name: getattr(TdroOptions(), field.name) for field in dataclasses.fields(TdroOptions)}
    with pytest.raises(ValueError, match=sentence):
        make_options(TdroOptions, defaults | options)
