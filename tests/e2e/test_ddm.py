"""`stage: ddm` and `ddm-sft` from a recipe to a checkpoint, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.e2e.contrastive_runs import LORA, RunResult, perform
from tests.e2e.ddm_runs import DDM, RUNS, SFT, write_data
from tests.e2e.token_runs import recipe
from tests.tiny_models import save_tiny_model


Train = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(tiny_llama: Path, data: Path, tmp_path: Path) -> Train:
    """Train into `tmp_path/<name>` by a recipe with these options."""

    def run(name: str, **options: Any) -> RunResult:
        return perform(recipe(output_dir=tmp_path / name, **{"model": tiny_llama, "data": data, **DDM, **options}))

    return run


def evaluation(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in metrics.items() if name.startswith("eval_")}


def differences(found: RunResult, expected: RunResult) -> float:
    assert found.parameters.keys() == expected.parameters.keys()
    return max(float((each - expected.parameters[name]).abs().max()) for name, each in found.parameters.items())


@pytest.mark.parametrize("name", RUNS)
def test_accumulation_is_a_large_batch(name: str, train: Train) -> None:
    whole = train("whole", **RUNS[name])
    parts = train("parts", **RUNS[name], batch_size=2, gradient_accumulation_steps=4)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert differences(parts, whole) < 1e-5
    assert len(set(whole.losses)) == len(whole.losses)  # the steps differ


STATEFUL = {
    "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0,
    "save_strategy": "steps", "batch_size": 4,
}  # fmt: skip
RESUMED_RUNS: dict[str, dict[str, Any]] = {
    "while-annealing": {"anneal_steps": 12, "max_steps": 6, "save_steps": 3},
    "second-epoch": {"anneal_steps": 200, "max_steps": 26, "save_steps": 22, "dataloader_num_workers": 2},
    "lora-answers": {**SFT, **LORA, "lora_dropout": 0.2, "max_steps": 5, "save_steps": 4},
    "streaming": {"streaming": True, "max_steps": 5, "save_steps": 3, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", RESUMED_RUNS)
def test_interrupted_and_resumed_is_uninterrupted(name: str, train: Train, tmp_path: Path) -> None:
    options = STATEFUL | RESUMED_RUNS[name]
    whole = train("whole", **options)
    checkpoint = tmp_path / "whole" / f"checkpoint-{options['save_steps']}"
    resumed = train("resumed", **options, resume_from_checkpoint=str(checkpoint))
    assert len(whole.losses) == options["max_steps"]
    assert resumed.losses == whole.losses  # those before the checkpoint are in its log
    for parameter, value in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[parameter], value, err_msg=parameter)

    history = json.loads((tmp_path / "resumed" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    ratios = [entry["annealing_ratio"] for entry in history if "annealing_ratio" in entry]
    steps = options.get("anneal_steps", 1)
    expected = [(step + 1) / steps for step in range(options["max_steps"])] if steps > 1 else []
    assert ratios == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [{}, {**LORA, "anneal_steps": 40}, {"block_size": 8}, SFT | {"eval_dataset": "sums_heldout"}],
    ids=["full", "lora-annealing", "blocks", "answers"],
)
def test_a_checkpoint_is_evaluated_as_it_was_trained(
    options: dict[str, Any], train: Train, tmp_path: Path, tiny_llama: Path
) -> None:
    """Evaluation is open however far annealing has come, and loading a checkpoint brings back mask token and shift."""
    options = {"eval_dataset": "heldout", "do_eval": True} | options
    train("trained", **options, shift=False)
    start: dict[str, Any] = {"model": tmp_path / "trained"}
    if "finetuning_type" in options:
        start = {"model": tiny_llama, "adapter_name_or_path": str(tmp_path / "trained")}
    train("evaluated", **options, **start, do_train=False)
    found, expected = evaluation(tmp_path / "evaluated"), evaluation(tmp_path / "trained")
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["eval_bits_per_token"] == pytest.approx(found["eval_loss"] / np.log(2))
    assert found["eval_perplexity_bound"] == pytest.approx(np.exp(found["eval_loss"]))
    record = json.loads((tmp_path / "trained" / "masked_tokens.json").read_text(encoding="utf-8"))
    assert record["shift"] is False


def test_more_samples_move_the_estimate_a_little(train: Train, tmp_path: Path) -> None:
    for samples in (4, 64):
        train(f"with-{samples}", do_train=False, do_eval=True, eval_dataset="heldout", elbo_samples=samples)
    few, many = (evaluation(tmp_path / f"with-{samples}")["eval_loss"] for samples in (4, 64))
    assert few != many
    assert few == pytest.approx(many, rel=0.05)


def test_training_lowers_the_bound_and_annealing_does_not_prevent_it(train: Train, tmp_path: Path) -> None:
    settings = {
        "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 40, "eval_dataset": "prose", "do_eval": True,
        "logging_steps": 40,
    }  # fmt: skip
    train("before", do_train=False, do_eval=True, eval_dataset="prose")
    before = evaluation(tmp_path / "before")["eval_loss"]
    for name, steps in (("open", 1), ("annealed", 20)):
        train(name, **settings, anneal_steps=steps)
        assert evaluation(tmp_path / name)["eval_loss"] < 0.8 * before


def test_data_are_prepared_once_and_trained_on_later(train: Train, tmp_path: Path) -> None:
    tokenized = tmp_path / "tokenized"
    train("prepared", do_train=False, tokenized_path=str(tokenized))
    assert not (tmp_path / "prepared" / "model.safetensors").exists()
    rows = load_from_disk(str(tokenized))["train"]
    assert max(map(len, rows["input_ids"])) <= 48
    assert [sum(lengths) for lengths in rows["lengths"]] == [len(ids) for ids in rows["input_ids"]]
    later, at_once = train("later", tokenized_path=str(tokenized)), train("at-once")
    assert later.losses == at_once.losses


def test_a_start_from_a_wrapped_checkpoint(train: Train, tiny_llama: Path, tmp_path: Path) -> None:
    """The adapted weights replace the base model's, under LoRA too."""
    adapted = save_tiny_model(tmp_path / "adapted", seed=5)
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    names = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    weights = load_file(adapted / "model.safetensors")
    renamed = {names.get(name, name.replace("model.", "denoise_model.", 1)): each for name, each in weights.items()}
    save_file(renamed, wrapped / "model.safetensors")

    options = {"eval_dataset": "heldout", "do_eval": True}
    direct = train("direct", **options, model=adapted, **LORA)
    started = train("started", **options, checkpoint_dir=str(wrapped), **LORA)
    assert started.losses == direct.losses
    assert evaluation(tmp_path / "started") == evaluation(tmp_path / "direct")
    assert train("base", **LORA).losses != direct.losses


def test_an_added_mask_token_is_trained_with_an_adapter(train: Train, tmp_path: Path) -> None:
    train("run", **LORA, optim="adamw_torch", learning_rate=1e-2)
    (vector,) = load_file(tmp_path / "run" / "mask_token.safetensors").values()
    mean = AutoModelForCausalLM.from_pretrained(
        json.loads((tmp_path / "run" / "masked_tokens.json").read_text())["base_model"]
    ).get_input_embeddings()
    assert float((vector - mean.weight.mean(dim=0)).detach().abs().max()) > 1e-3


# --------------------------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------------------------


def test_blocks_must_divide_the_row(train: Train) -> None:
    with pytest.raises(ValueError, match="`block_size: 7` does not divide `cutoff_len: 48`"):
        train("run", block_size=7)


def test_blocks_and_annealing_exclude_each_other(train: Train) -> None:
    with pytest.raises(ValueError, match="`anneal_steps: 3` opens attention over whole texts"):
        train("run", block_size=8, anneal_steps=3)


def test_blocks_need_the_whole_window(train: Train, tmp_path: Path) -> None:
    mistral = save_tiny_model(tmp_path / "mistral", "mistral")
    with pytest.raises(ValueError, match="sliding window of 4 tokens"):
        train("run", model=mistral, block_size=8)
    assert train("ignored", model=mistral, block_size=8, sliding_window="ignore", max_steps=1).losses


def test_an_unknown_family_needs_a_mask_token_and_a_shift(train: Train, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "olmo2", "llama"))
    config = model.config.to_dict() | {"model_type": "olmo2"}
    (tmp_path / "olmo2" / "config.json").write_text(json.dumps(config | {"architectures": ["Olmo2ForCausalLM"]}))
    with pytest.raises(ValueError, match=r"`olmo2` models.*set `mask_token` and `shift`"):
        train("run", model=tmp_path / "olmo2", shift=True)


def test_annealing_under_a_backend_without_masks_says_so(train: Train) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash attention is there")
    with pytest.raises(ValueError, match="flash_attention_2 needs a CUDA device"):
        train("run", anneal_steps=3, flash_attn="fa2")


def test_a_foreign_checkpoint_is_refused_before_anything_is_loaded(train: Train, tmp_path: Path) -> None:
    foreign = save_tiny_model(tmp_path / "gpt2", "gpt2")
    (foreign / "config.json").unlink()
    with pytest.raises(ValueError, match="does not hold the weights of this model: it lacks"):
        train("run", checkpoint_dir=str(foreign))


# --------------------------------------------------------------------------------------------------------------------
# Predictions
# --------------------------------------------------------------------------------------------------------------------


def predictions(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 8, "block_length": 8}, {"ddm_format": "diffuseq", "cutoff_len": 12}],
    ids=["chat", "blocks", "diffuseq"],
)
def test_learned_answers_are_sampled(options: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """From random weights: what training fits is what sampling writes, with the same mask, shift and layout, on a
    canvas as long as in training."""
    learn = SFT | {
        "dataset": "opposites", "cutoff_len": 24, "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 170,
        "lr_scheduler_type": "cosine", "batch_size": 6, "logging_steps": 60, "max_grad_norm": 1.0,
        "do_predict": True, "eval_dataset": "opposites", "max_new_tokens": 8, "diffusion_steps": 8, "do_sample": False,
    }  # fmt: skip
    if "ddm_format" in options:
        learn["eos_padding"] = None
    train("run", **(learn | options))
    found = predictions(tmp_path / "run")
    assert [each["predict"].strip() for each in found] == [each["label"].strip() for each in found]
    assert len(found) == 6
    metrics = json.loads((tmp_path / "run" / "predict_results.json").read_text(encoding="utf-8"))
    assert metrics["predict_exact_match"] == 100


def test_documents_are_continued_or_written_from_nothing(train: Train, tmp_path: Path) -> None:
    options = {"do_train": False, "do_predict": True, "max_new_tokens": 8, "diffusion_steps": 4}
    train("prompt", **options, eval_dataset="heldout", prompt_tokens=5)
    train("nothing", **options, eval_dataset="heldout", predict_task="unconditional")
    given, free = predictions(tmp_path / "prompt"), predictions(tmp_path / "nothing")
    assert len(given) == len(free)
    assert all(each["prompt"] for each in given)
    assert any(each["label"] for each in given)
    assert all(not each["prompt"] for each in free)


@pytest.mark.parametrize("do_train", [False, True])
def test_a_prompt_without_room_is_found_before_anything_is_trained(
    do_train: bool, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the prompt of row 0 has \d+ tokens, more than `cutoff_len: 4`"):
        train("run", **SFT, cutoff_len=4, do_train=do_train, do_predict=True, eval_dataset="sums")
    assert not (tmp_path / "run" / "model.safetensors").exists()
