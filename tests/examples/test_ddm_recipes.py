"""The recipes of `stage: ddm` and `ddm-sft` with tiny models and bundled data; the page names every option."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from omegaconf import OmegaConf

from llamafactory_embed.hparams.ddm import DiffusionTuningOptions
from llamafactory_embed.hparams.sampling import SamplingOptions
from tests.docs.option_pages import declared_options, explained_options
from tests.e2e.contrastive_runs import perform
from tests.e2e.ddm_runs import write_data
from tests.tiny_models import save_tiny_model


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# What a machine without GPUs has no use for.
ENGINE_KEYS = ("flash_attn", "bf16", "quantization_bit", "deepspeed", "preprocessing_num_workers")
ARCHITECTURES = ("gpt2", "llama", "qwen3", "dream", "llada")
NAMES = {"smollm2": "llama"}


def read(recipe: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(recipe))


def is_training(recipe: Path) -> bool:
    options = read(recipe)
    is_ours = options.get("stage") in ("ddm", "ddm-sft")
    return is_ours and "do_train" in options and not options.get("do_predict")


RECIPES = [path.relative_to(EXAMPLES) for path in sorted(EXAMPLES.rglob("*.yaml")) if is_training(path)]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    for architecture in ARCHITECTURES:
        save_tiny_model(folder / architecture, architecture)
    write_data(folder / "data")
    return folder


def tiny_variant(options: dict[str, Any], material: Path, output: Path) -> dict[str, Any]:
    """A recipe with a tiny model of its architecture, bundled data and two steps; all else is its own."""
    name = options["model_name_or_path"].lower()
    architecture = next(
        tiny for known, tiny in [*NAMES.items(), *((each, each) for each in ARCHITECTURES)] if known in name
    )
    documents = options["stage"] == "ddm"
    tiny = {key: value for key, value in options.items() if key not in ENGINE_KEYS}
    tiny |= {
        "model_name_or_path": str(material / architecture),
        "dataset_dir": str(material / "data"),
        "dataset": "prose" if documents else "sums",
        "eval_dataset": "heldout" if documents else "sums_heldout",
        "output_dir": str(output),
        "cutoff_len": 64,
        "report_to": "none",
        "use_cpu": True,
        "resize_vocab": True,  # the tokenizer of the tiny models lacks what templates end answers with
        "disable_tqdm": True,
    }
    if tiny["do_train"]:
        tiny |= {
            "do_eval": True,
            "eval_strategy": "no",
            "eval_on_start": False,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": min(2, options.get("gradient_accumulation_steps", 1)),
            "max_steps": 2,
            "save_strategy": "no",
            "warmup_steps": 0,
            "logging_steps": 1,
        }
        tiny.pop("warmup_ratio", None)
        for name in ("val_size", "interleave_probs", "mix_strategy", "streaming"):  # one data set, with held-out rows
            tiny.pop(name, None)
    if "ddm_separator" in options:
        tiny |= {"ddm_separator": "=", "ddm_padding": "11"}  # tokens of the tiny models' tokenizer
    if "checkpoint_dir" in options:
        tiny["checkpoint_dir"] = str(material / architecture)
    if "tokenized_path" in options:
        tiny["tokenized_path"] = str(output.parent / "tokenized")
    return tiny


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_tiny_variant_trains(recipe: Path, material: Path, tmp_path: Path) -> None:
    options = read(EXAMPLES / recipe)
    result = perform(tiny_variant(options, material, tmp_path / "out"))
    if not options["do_train"]:
        assert load_from_disk(str(tmp_path / "tokenized"))["train"].column_names == ["input_ids", "lengths"]
        assert not any((tmp_path / "out").rglob("*.safetensors"))
        return
    assert len(result.losses) == 2
    assert all(loss > 0 for loss in result.losses)
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text(encoding="utf-8"))
    assert metrics["eval_bits_per_token"] > 0
    is_adapter = options["finetuning_type"] == "lora"
    assert (tmp_path / "out" / ("adapter_model" if is_adapter else "model")).with_suffix(".safetensors").is_file()


def test_there_are_recipes_of_both_stages() -> None:
    stages = [read(EXAMPLES / recipe)["stage"] for recipe in RECIPES]
    assert {"ddm", "ddm-sft"} == set(stages)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_is_listed(recipe: Path) -> None:
    assert f"(../examples/{recipe})" in (ROOT / "docs" / "recipes.md").read_text("utf-8")


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("ddm.md") == declared_options(DiffusionTuningOptions, explained_elsewhere=SamplingOptions)


def prepare_fineweb(tmp_path: Path, *arguments: str) -> list[str]:
    """The texts that the script writes for four documents."""
    rows = [
        {"text": "a" * 300, "token_count": 100, "language_score": 0.9, "url": "x"},
        {"text": " short\n", "token_count": 2, "language_score": 0.99, "url": "y"},
        {"text": " ", "token_count": 1, "language_score": 0.99, "url": "y"},
        {"text": " b" * 200, "token_count": 200, "language_score": 0.7, "url": "z"},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "part.parquet")
    main = runpy.run_path(str(ROOT / "scripts" / "prepare_fineweb.py"))["main"]
    output = tmp_path / "cache" / "fineweb.jsonl"
    main(["--files", str(tmp_path / "part.parquet"), "--output", str(output), *arguments])
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert all(line.keys() == {"text"} for line in lines)
    return [line["text"] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ([], ["a" * 300, " short\n", " b" * 200]),
        (["--shortest", "100"], ["a" * 300, " b" * 200]),
        (["--contains", "b"], [" b" * 200]),
        (["--language-score", "0.9"], ["a" * 300, " short\n"]),
        (["--tokens", "101"], ["a" * 300, " short\n"]),
        (["--tokens", "30e9", "--documents", "1"], ["a" * 300]),
    ],
)
def test_fineweb_is_prepared_from_parquet_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], kept: list[str]
) -> None:
    assert prepare_fineweb(tmp_path, *arguments) == kept
    assert f"{len(kept)} documents" in capsys.readouterr().out


def test_a_choice_without_any_document_leaves_what_was_there(tmp_path: Path) -> None:
    prepare_fineweb(tmp_path)
    output = tmp_path / "cache" / "fineweb.jsonl"
    before = output.read_bytes()
    with pytest.raises(ValueError, match="No document is left"):
        prepare_fineweb(tmp_path, "--shortest", "1000")
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == [output.name]
