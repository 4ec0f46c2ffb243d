"""What a checkpoint remembers of its training is how it is sampled and scored: blocks, an ignored window."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.chat import ChatModel
from llamafactory.train.tuner import run_exp
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llamafactory_embed.cli import main
from llamafactory_embed.model.mask_token import MaskedTokenRecord, save_mask_embedding
from llamafactory_embed.sampling.checkpoint import load_sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.e2e.ddm_runs import write_data
from tests.tiny_models import HIDDEN_SIZE, save_tiny_model, tiny_tokenizer


pytestmark = pytest.mark.usefixtures("single_process")
MASK = 300  # added to the tokenizer
BLOCK = 4
SETTINGS = SamplingSettings(steps=12, max_new_tokens=12, algorithm="low_confidence")
PROMPT = "The people of"


def save_diffusion_model(folder: Path, block_size: int | None) -> Path:
    """A random model with a row for its mask token, which says that it was trained with these blocks."""
    save_tiny_model(folder, vocab_size=310, tie_word_embeddings=False)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder)
    MaskedTokenRecord("<mask>", MASK, shift=True, block_size=block_size).save(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights, trained in blocks and not."""
    folder = tmp_path_factory.mktemp("remembered")
    return {
        "blocks": save_diffusion_model(folder / "blocks", BLOCK),
        "plain": save_diffusion_model(folder / "plain", None),
    }


def written(folder: Path, **options: Any) -> list[int]:
    sampler = load_sampler(folder, SETTINGS, device="cpu", **options)
    return sampler.complete([sampler.tokenizer(PROMPT)["input_ids"]])[0].text


def test_a_checkpoint_is_sampled_in_the_blocks_of_its_training(models: dict[str, Path]) -> None:
    in_blocks, plain = written(models["plain"], block_size=BLOCK), written(models["plain"])
    assert in_blocks != plain
    assert written(models["blocks"]) == in_blocks
    assert written(models["blocks"], block_size=0) == plain  # who says otherwise is heard
    stated = dataclasses.replace(SETTINGS, block_size=2)
    assert load_sampler(models["blocks"], stated, device="cpu").settings.block_size == 2


def test_records_of_older_releases_load(models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["blocks"], tmp_path / "older")
    record = json.loads((folder / "masked_tokens.json").read_text("utf-8"))
    del record["block_size"], record["sliding_window"]
    (folder / "masked_tokens.json").write_text(json.dumps(record), "utf-8")
    assert written(folder) == written(models["plain"])


def test_the_command(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    def run(folder: Path, *more: str) -> str:
        call = ["sample", str(folder), "--device", "cpu", "--prompt", PROMPT, "--tokens", "12", "--steps", "12"]
        assert main([*call, "--temperature", "0", "--algorithm", "low_confidence", *more]) == 0
        return capsys.readouterr().out

    in_blocks, plain = run(models["plain"], "--block-size", str(BLOCK)), run(models["plain"])
    assert in_blocks != plain
    assert run(models["blocks"]) == in_blocks
    assert run(models["blocks"], "--cache", "prefix") == in_blocks  # blocks are there: nothing else has to be set
    assert run(models["blocks"], "--block-size", "0") == plain
    for more, sentence in (
        (["--block-length", "3"], "`block_length: 3` contradicts `block_size: 4`"),
        (["--block-size", "-1"], "`--block-size` must be at least 0"),
    ):
        assert main(["sample", str(models["blocks"]), "--device", "cpu", *more]) == 1
        assert sentence in capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def recipe(model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "ddm",
        "finetuning_type": "full",
        "dataset_dir": str(data),
        "cutoff_len": 48,
        "output_dir": str(output),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "overwrite_cache": True,
    } | options


def test_predictions(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    def predict(model: str, **options: Any) -> str:
        asked = {"do_predict": True, "eval_dataset": "heldout", "max_new_tokens": 12, "diffusion_steps": 12}
        greedy = {"do_sample": False, "sampling_algorithm": "low_confidence", "prompt_tokens": 6, "cutoff_len": 42}
        run_exp(recipe(models[model], data, tmp_path / "out", **asked, **greedy, **options))
        return (tmp_path / "out" / "generated_predictions.jsonl").read_text("utf-8")

    in_blocks, plain = predict("plain", block_size=BLOCK), predict("plain")
    assert in_blocks != plain
    assert predict("blocks") == in_blocks
    assert predict("blocks", block_size=0) == plain


def test_training_writes_it_and_evaluation_reads_it(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    def bound(model: Path, name: str, **options: Any) -> float:
        asked = {"do_eval": True, "eval_dataset": "heldout", "elbo_samples": 2}
        run_exp(recipe(model, data, tmp_path / name, **asked, **options))
        return json.loads((tmp_path / name / "eval_results.json").read_text("utf-8"))["eval_loss"]

    learn = {"do_train": True, "dataset": "prose", "max_steps": 1, "learning_rate": 1e-3, "save_strategy": "no"}
    trained = bound(models["plain"], "trained", **learn, block_size=8)
    record = MaskedTokenRecord.find([tmp_path / "trained"])
    assert record is not None
    assert record.block_size == 8
    assert bound(tmp_path / "trained", "evaluated") == pytest.approx(trained, rel=1e-6)
    assert bound(tmp_path / "trained", "open", block_size=0) != pytest.approx(trained, rel=1e-3)
    bound(tmp_path / "trained", "again", **learn)  # training goes on in blocks
    again = MaskedTokenRecord.find([tmp_path / "again"])
    assert again is not None
    assert again.block_size == 8


def test_contradictions_come_before_the_training(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    learn = {"do_train": True, "dataset": "prose", "max_steps": 1, "save_strategy": "no"}
    predict = {"do_predict": True, "eval_dataset": "heldout"}
    for options, sentence in (
        (learn | {"anneal_steps": 3}, "`block_size: 4` keeps closed .*`block_size: 0` if the checkpoint"),
        (learn | {"cutoff_len": 42}, "`block_size: 4` does not divide `cutoff_len: 42`"),
        (learn | predict | {"block_length": 6}, "`block_length: 6` contradicts `block_size: 4`"),
        (learn | predict | {"block_size": 0, "sampling_cache": "dual"}, "set `block_length`"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_exp(recipe(models["blocks"], data, tmp_path / "out", **options))
        assert not (tmp_path / "out" / "model.safetensors").exists()


def test_chat(models: dict[str, Path]) -> None:
    def answer(model: str, **options: Any) -> str:
        asked = {"stage": "ddm-sft", "template": "default", "infer_dtype": "float32", "do_sample": False}
        steps = {"max_new_tokens": 12, "diffusion_steps": 12, "sampling_algorithm": "low_confidence"}
        served = ChatModel({"model_name_or_path": str(models[model]), **asked, **steps, **options})
        return served.chat([{"role": "user", "content": "Why?"}])[0].response_text

    in_blocks, plain = answer("plain", block_size=BLOCK), answer("plain")
    assert in_blocks != plain
    assert answer("blocks") == in_blocks
    assert answer("blocks", block_size=0) == plain


# ------------------------------------------------ an ignored window ------------------------------------------------


def save_windowed_adapter(folder: Path) -> Path:
    """An adapter over a model with a window of four tokens, which its training ignored."""
    base = save_tiny_model(folder / "base", "mistral")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder / "adapter")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder / "adapter")
    save_mask_embedding(folder / "adapter", torch.randn(HIDDEN_SIZE))
    MaskedTokenRecord("<mask>", MASK, shift=True, base_model=str(base), sliding_window="ignore").save(
        folder / "adapter"
    )
    return folder / "adapter"


def test_a_window_that_training_ignored_stays_ignored(data: Path, tmp_path: Path) -> None:
    adapter = save_windowed_adapter(tmp_path)
    sampler = load_sampler(adapter, SETTINGS, device="cpu")
    prompt = sampler.tokenizer(PROMPT)["input_ids"]
    ignored = sampler.complete([prompt])
    windowed = load_sampler(adapter, SETTINGS, device="cpu")
    windowed.sliding_window = "keep"
    assert windowed.complete([prompt]) != ignored

    def bound(**options: Any) -> float:
        asked = {"do_eval": True, "eval_dataset": "heldout", "elbo_samples": 1, "finetuning_type": "lora"}
        adapted = {"adapter_name_or_path": str(adapter)}
        run_exp(recipe(tmp_path / "base", data, tmp_path / "out", **asked, **adapted, **options))
        return json.loads((tmp_path / "out" / "eval_results.json").read_text("utf-8"))["eval_loss"]

    remembered = bound()
    record = json.loads((adapter / "masked_tokens.json").read_text("utf-8"))
    (adapter / "masked_tokens.json").write_text(json.dumps(record | {"sliding_window": "keep"}), "utf-8")
    assert bound(sliding_window="ignore") == pytest.approx(remembered, rel=1e-6)
    assert bound() != pytest.approx(remembered, rel=1e-4)
