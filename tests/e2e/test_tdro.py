"""`stage: tdro` from the recipe to the weights, in this process: the same by every way to compute it, and right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.weights import task_shares
from llamafactory_embed.train.embed.tdro import reference as references_module
from llamafactory_embed.train.embed.tdro import trainer
from tests.tiny_models import save_tiny_model

from .contrastive_runs import LORA, RunResult, perform, recipe, write_data
from .tdro_runs import TDRO, history_numbers, read_history, read_json


TASKS = ["nouns", "words"]

Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("reference"), seed=1)


@pytest.fixture
def run(tiny_llama: Path, data: Path, reference: Path, tmp_path: Path) -> Run:
    """Perform a recipe in `tmp_path / name`; `ref_model=None` is a recipe without one."""

    def perform_recipe(name: str, **options: Any) -> RunResult:
        given = {**TDRO, "ref_model": str(reference), **options}
        return perform(recipe(tiny_llama, data, tmp_path / name, **{k: v for k, v in given.items() if v is not None}))

    return perform_recipe


def assert_alike(found: tuple[RunResult, Path], expected: tuple[RunResult, Path], tolerance: float = 1e-5) -> None:
    """Losses, gradients, parameters and everything in the history."""
    assert found[0].losses == pytest.approx(expected[0].losses, abs=tolerance)
    assert history_numbers(found[1]) == pytest.approx(history_numbers(expected[1]), rel=10 * tolerance)
    for name in ("gradients", "parameters"):
        ours, theirs = getattr(found[0], name), getattr(expected[0], name)
        assert ours.keys() == theirs.keys()
        assert ours
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < tolerance


# ---------------------------------------------------------------------------------------------------------------
# The same numbers by every way
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["ratio", "paper_ratio"])
def test_losses_of_the_reference_from_a_file(measure: str, run: Run, tmp_path: Path) -> None:
    options = {"tdro_measure": measure, "num_train_epochs": 2.0, "max_steps": -1, "gradient_accumulation_steps": 3}
    plain = run("plain", **options)
    cached = run("cached", **options, tdro_cache_reference=True)
    assert_alike((cached, tmp_path / "cached"), (plain, tmp_path / "plain"))


def test_the_reference_is_asked_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds is not computed again, in a resumed run or in another with the same folder; another
    temperature has other losses."""
    shared = {"tdro_cache_reference": True, "cache_dir": str(tmp_path / "cache")}
    loaded: list[str] = []
    load = references_module.load_reference

    def count(*args: Any) -> Any:
        loaded.append("once more")
        return load(*args)

    monkeypatch.setattr(references_module, "load_reference", count)
    run("first", **shared)
    run("again", **shared, tdro_lr=0.1)
    assert len(loaded) == 1
    first, again = (read_history(tmp_path / name) for name in ("first", "again"))
    assert [entry["reference_loss"] for entry in again] == [entry["reference_loss"] for entry in first]
    run("stopped", **shared, max_steps=50, stop_after_n_steps=3)
    assert len(loaded) == 1
    run("longer", **shared, max_steps=5)
    assert len(loaded) == 2
    run("warmer", **shared, loss_temperature=0.2)
    assert len(loaded) == 3
    assert len(list((tmp_path / "cache").glob("reference_losses-*.safetensors"))) == 2


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model with dropout of its own, which no reference may draw."""
    folder = save_tiny_model(tmp_path_factory.mktemp("dropping"), attention_dropout=0.2)
    return {"model_name_or_path": str(folder), "flash_attn": "disabled"}


@pytest.mark.parametrize("cached", [False, True], ids=["computed", "cached"])
def test_adapter_switched_off_is_a_second_model(
    cached: bool, run: Run, dropping: dict[str, str], tmp_path: Path
) -> None:
    adapter = {**LORA, **dropping, "lora_dropout": 0.2}
    second = run("second", **adapter, ref_model=dropping["model_name_or_path"])
    shared = run("shared", **adapter, ref_model=None, tdro_cache_reference=cached)
    assert_alike((shared, tmp_path / "shared"), (second, tmp_path / "second"))
    last = read_history(tmp_path / "shared")[-1]
    assert last["loss"] != pytest.approx(last["reference_loss"], abs=1e-3)  # the adapter was off, and on again


def test_adapters_make_the_reference(run: Run, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """An adapter of the contrastive stage on its base, and the same merged by hand into the proxy's start."""
    train = {**LORA, "stage": "contrastive", "ref_model": None, "tdro_lr": None, "learning_rate": 0.5}
    run("adapter", **train)
    adapter = str(tmp_path / "adapter")
    named = run("named", **LORA, ref_model=str(tiny_llama), ref_model_adapters=adapter)
    merged = {"adapter_name_or_path": adapter, "create_new_adapter": True, "ref_model": None}
    run("merged", **LORA, **merged)
    alone = run("alone", **LORA, ref_model=str(tiny_llama))
    reference_losses = [
        [entry["reference_loss"] for entry in read_history(tmp_path / name)] for name in ("named", "merged", "alone")
    ]
    for with_name, with_merge, without in zip(*reference_losses, strict=True):
        assert with_name == pytest.approx(with_merge, abs=1e-5)
        assert with_name != pytest.approx(without, abs=1e-3)
    assert named.losses != alone.losses


def test_grad_cache_is_a_plain_step(run: Run, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "max_tokens_per_batch": 64}
    plain = run("plain", **options)
    cached = run("cached", **options, grad_cache_tokens=64)
    assert_alike((cached, tmp_path / "cached"), (plain, tmp_path / "plain"))


def test_accumulation_measures_as_one_batch(run: Run, tmp_path: Path) -> None:
    """The paper's measure does not depend on how an update's rows are cut. (Losses are weighted per micro-batch.)"""
    for name, cut in {"one": 1, "cut": 4}.items():
        options = {"tdro_measure": "paper_ratio", "batch_size": 8 // cut, "gradient_accumulation_steps": cut}
        run(name, **options, learning_rate=0.0)
    assert history_numbers(tmp_path / "cut") == pytest.approx(history_numbers(tmp_path / "one"), rel=1e-4)


STATEFUL = {
    "tdro_optimizer": "adamw", "tdro_scheduler": "cosine", "tdro_warmup_steps": 3, "tdro_min_lr_ratio": 0.1,
    "tdro_normalize_on_update": False, "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "cosine",
    **LORA, "lora_dropout": 0.2, "ref_model": None, "save_strategy": "steps",
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 22, "save_steps": 19}, {"max_steps": 12, "save_steps": 8, "gradient_accumulation_steps": 3}],
    ids=["second-epoch", "accumulation"],
)
def test_interrupted_and_resumed_is_uninterrupted(options: dict[str, Any], run: Run, tmp_path: Path) -> None:
    whole = run("whole", **STATEFUL, **options)
    checkpoint = tmp_path / "whole" / f"checkpoint-{options['save_steps']}"
    resumed = run("resumed", **STATEFUL, **options, resume_from_checkpoint=str(checkpoint))
    assert resumed.losses == whole.losses
    assert resumed.parameters.keys() == whole.parameters.keys()
    assert all(torch.equal(resumed.parameters[name], value) for name, value in whole.parameters.items())
    assert read_history(tmp_path / "resumed") == read_history(tmp_path / "whole")
    for name in ("curr", "mean", "ema"):
        files = [tmp_path / folder / f"{name}_weights.json" for folder in ("whole", "resumed")]
        assert read_json(files[1]) == read_json(files[0])
        assert read_json(files[0]) != read_json(checkpoint / f"{name}_weights.json")
    logs = [read_json(tmp_path / name / "trainer_state.json")["log_history"] for name in ("whole", "resumed")]
    assert [entry for entry in logs[1] if "loss" in entry] == [entry for entry in logs[0] if "loss" in entry]


def test_a_checkpoint_of_other_tasks_is_refused(run: Run, tmp_path: Path) -> None:
    run("nouns", save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "nouns" / "checkpoint-2"
    with pytest.raises(ValueError, match="has weights for nouns, words, and the recipe has the tasks words, nouns"):
        run("other", dataset="words,nouns", resume_from_checkpoint=str(checkpoint), max_steps=4)
    history = checkpoint / "task_weights.jsonl"
    history.write_text(history.read_text("utf-8").replace('"learning_rate": 0.5', '"learning_rate": 0.6'), "utf-8")
    with pytest.raises(ValueError, match=r"task_weights\.jsonl is missing or damaged \(it has changed since it was"):
        run("changed", resume_from_checkpoint=str(checkpoint), max_steps=4)
    (checkpoint / "task_weights.pt").unlink()
    with pytest.raises(ValueError, match=r"has no task_weights\.pt: .*checkpoint-3 is whole, name that"):
        run("none", resume_from_checkpoint=str(checkpoint), max_steps=4)


# ---------------------------------------------------------------------------------------------------------------
# The right numbers
# ---------------------------------------------------------------------------------------------------------------


LEARNED = "words"


@pytest.fixture(scope="module")
def half_taught(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that has learned one task and not the other."""
    folder = tmp_path_factory.mktemp("half-taught") / "reference"
    contrastive = {name: value for name, value in TDRO.items() if name != "tdro_lr"} | {"stage": "contrastive"}
    steps = {"max_steps": 40, "optim": "adamw_torch", "learning_rate": 3e-3}
    perform(recipe(tiny_llama, data, folder, **contrastive, dataset=LEARNED, **steps))
    return folder


@pytest.mark.parametrize("measure", ["ratio", "paper_ratio", "difference", "relative_difference"])
def test_weight_goes_to_the_task_that_the_reference_does_better(
    measure: str, run: Run, half_taught: Path, tmp_path: Path
) -> None:
    """The proxy has learned neither task: only where the reference has is something to gain."""
    frozen = {"learning_rate": 0.0, "max_steps": 12, "tdro_measure": measure}
    run("weights", ref_model=str(half_taught), **frozen)
    weights = [entry["weight"][LEARNED] for entry in read_history(tmp_path / "weights")]
    assert weights[-1] > 0.9


def test_the_loss_alone_needs_no_reference(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*args: Any) -> Any:
        raise AssertionError("a reference was loaded")

    monkeypatch.setattr(references_module, "load_reference", load)
    run("run", tdro_measure="loss", learning_rate=0.0, batch_size=64, max_steps=2)
    for entry in read_history(tmp_path / "run"):
        assert entry["measure"] == entry["loss"]
        assert "reference_loss" not in entry


def test_a_batch_is_weighted_as_the_weights_say(run: Run, tmp_path: Path) -> None:
    """With start weights that hardly move, the loss of a step is the weighted mean of its tasks' losses."""
    start = tmp_path / "start.json"
    start.write_text(json.dumps({"nouns": 0.2, "words": 0.8}), encoding="utf-8")
    result = run("run", tdro_start_weights=str(start), tdro_lr=1e-9, batch_size=32, learning_rate=0.0)
    for loss, entry in zip(result.losses, read_history(tmp_path / "run"), strict=True):
        assert entry["weight"] == pytest.approx({"nouns": 0.2, "words": 0.8}, abs=1e-6)
        assert sum(entry["queries"].values()) == 32
        shares = {task: count * entry["weight"][task] for task, count in entry["queries"].items()}
        weighted = sum(share * entry["loss"][task] for task, share in shares.items()) / sum(shares.values())
        assert loss == pytest.approx(weighted, abs=1e-5)


def test_in_batch_negatives_make_the_loss_of_a_batch(run: Run, tmp_path: Path) -> None:
    """Where nothing moves, proxy and reference lose what the contrastive stage says of the same mixed batch."""
    shared = {"learning_rate": 0.0, "batch_size": 16, "max_steps": 2, "num_negatives": 0, "seed": 3}
    run("weights", **shared, tdro_in_batch_negatives=True, tdro_lr=1e-9)
    contrastive = {"stage": "contrastive", "task_batching": "mixed", "tdro_lr": None, "ref_model": None}
    expected = run("contrastive", **shared, **contrastive).losses
    for entry, loss in zip(read_history(tmp_path / "weights"), expected, strict=True):
        queries, losses = entry["queries"], entry["loss"]
        assert sum(queries[task] * losses[task] for task in TASKS) / 16 == pytest.approx(loss, abs=1e-5)
        assert entry["reference_loss"] != pytest.approx(losses, abs=1e-3)
        assert sum(losses.values()) / 2 > math.log(8)  # 16 candidates, none of them learned


class Watcher(TrainerCallback):
    """What the optimizer holds, and whether the reference stays as it was."""

    def __init__(self) -> None:
        self.optimized = 0
        self.learning = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.optimized = sum(parameter.numel() for group in groups for parameter in group["params"])
        self.learning = sum(each.numel() for each in kwargs["model"].parameters() if each.requires_grad)


def test_the_reference_is_frozen(
    run: Run, tiny_llama: Path, data: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.train.tuner import run_exp

    references: list[Any] = []
    own_init = trainer.TdroTrainer.__init__

    def init(self: Any, **kwargs: Any) -> None:
        references.append(kwargs["reference"].model)
        own_init(self, **kwargs)

    monkeypatch.setattr(trainer.TdroTrainer, "__init__", init)
    watcher = Watcher()
    run_exp(recipe(tiny_llama, data, tmp_path / "out", **TDRO, ref_model=str(reference)), callbacks=[watcher])
    (model,) = references
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    saved = load_file(reference / "model.safetensors")
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in saved.items())
    assert watcher.optimized == watcher.learning > 0


# ---------------------------------------------------------------------------------------------------------------
# What is left behind
# ---------------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "tdro_top_percents": [10, 50, 100]}
    run("run", **options, logging_steps=2, eval_dataset="nouns_heldout", do_eval=True)
    folder = tmp_path / "run"
    history = read_history(folder)
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]

    # Weights at every checkpoint and at the end, as the history has them; what the contrastive stage would draw by.
    for place, entry in ((folder / "checkpoint-3", history[2]), (folder, history[-1])):
        table = read_json(place / "curr_weights.json")
        assert table["domain_weights"] == entry["weight"]
        assert table["size"] == {"nouns": 64, "words": 64}
        shares = task_shares(str(place / "curr_weights.json"), TASKS, [64, 64])
        assert shares == pytest.approx([entry["weight"][task] for task in TASKS])
        top = read_json(place / "top50_weights.json")["domain_weights"]
        assert top == {max(TASKS, key=lambda task: entry["weight"][task]): 1.0}
        assert set(read_json(place / "top100_weights.json")["domain_ids"]) == set(TASKS)
        assert not (place / "top10_weights.json").exists()
        mean = read_json(place / "mean_weights.json")["domain_weights"]
        seen = history[: entry["step"]]
        assert mean == pytest.approx({task: sum(each["weight"][task] for each in seen) / len(seen) for task in TASKS})
        average = {task: 1 / 2 for task in TASKS}
        for each in seen:
            average = {task: 0.9 * average[task] + 0.1 * each["weight"][task] for task in TASKS}
        assert read_json(place / "ema_weights.json")["domain_weights"] == pytest.approx(average)
    assert read_history(folder / "checkpoint-3") == history[:3]

    # The loggers: means since the entry before, and the latest weight.
    logged = [entry for entry in read_json(folder / "trainer_state.json")["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    for number, entry in enumerate(logged):
        pair = history[2 * number : 2 * number + 2]
        for task in TASKS:
            assert entry[f"weight/{task}"] == pair[-1]["weight"][task]
            for name in ("loss", "reference_loss", "measure"):
                values = [each[name][task] for each in pair if task in each[name]]
                assert entry[f"{name}/{task}"] == pytest.approx(sum(values) / len(values))

    assert (folder / "task_weights.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out.split("task  ")[-1].splitlines()[1:3]
    by_weight = sorted(TASKS, key=lambda task: -history[-1]["weight"][task])
    assert [line.split()[0] for line in table] == by_weight
    assert [float(line.split()[6]) for line in table] == [
        pytest.approx(history[-1]["weight"][task], abs=1e-4) for task in by_weight
    ]
    assert "| nouns | 64 |" in (folder / "README.md").read_text(encoding="utf-8")
    assert math.isclose(
        Encoder(folder).encode(["a text"]).dot(Encoder(folder).encode(["a text"])[0])[0], 1, abs_tol=1e-5
    )


def test_the_chain(run: Run, tmp_path: Path) -> None:
    """Uniform weights, the weights that follow, and a model trained on them."""
    stage = {"stage": "contrastive", "ref_model": None, "tdro_lr": None}
    run("s0", **stage)
    run("s1", ref_model=str(tmp_path / "s0"))
    for name in ("curr", "top50"):
        weights = tmp_path / "s1" / f"{name}_weights.json"
        result = run(f"s2-{name}", **{**stage, "dataset_weights": str(weights)})
        assert all(map(math.isfinite, result.losses))
