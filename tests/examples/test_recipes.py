"""Every recipe is accepted by LLaMA-Factory, one of each family trains, and the pages name what there is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamafactory.train.tuner import run_exp
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation.in_training import evaluate_retrieval
from llamafactory_embed.export.verify import stacked
from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.recipe import check_recipe
from llamafactory_embed.train.embed.contrastive import trainer
from tests.docs.option_pages import declared_options, explained_options
from tests.tiny_models import HIDDEN_SIZE, save_tiny_model, tiny_model


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENGINE_FOLDERS = ("accelerate", "chain", "deepspeed", "eval")  # not for the host: launchers, engines, our own commands
RECIPES = [
    path.relative_to(EXAMPLES)
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    if path.relative_to(EXAMPLES).parts[0] not in ENGINE_FOLDERS
]

# The tiny model that stands for a model of that name.
ARCHITECTURES = {
    "dream": "dream",
    "qwen1.5": "qwen2",
    "qwen2-": "qwen2",
    "qwen2.5": "qwen2",
    "qwen3.5": "qwen3_5",
    "qwen3": "qwen3",
    "mistral": "mistral",
    "llama": "llama",
    "smollm2": "llama",
    "gemma-3": "gemma3",
    "jina_v5": "qwen3",
}
# Two recipes are of one family when they have the same values of these options …
TELLING_VALUES = ("attention", "pooling", "contrastive_loss", "finetuning_type", "skip_instruction")
# … and both or neither of them set these.
TELLING_KEYS = (
    "adapter_name_or_path",
    "simcse_dropout",
    "matryoshka_dims",
    "grad_cache_tokens",
    "objectives",
    "multi_vector",
)
# What a machine without GPUs has no use for.
ENGINE_KEYS = (
    "deepspeed",
    "flash_attn",
    "bf16",
    "quantization_bit",
    "quantization_method",
    "double_quantization",
    "ray_num_workers",
)


def read(recipe: Path) -> dict[str, Any]:
    """The options of a recipe, as LLaMA-Factory reads them."""
    return OmegaConf.to_container(OmegaConf.load(EXAMPLES / recipe))


def families() -> list[Path]:
    """The first recipe of each family of the contrastive stage."""
    first: dict[tuple[Any, ...], Path] = {}
    for recipe in RECIPES:
        options = read(recipe)
        if options.get("stage") == "contrastive" and options.get("do_train"):
            key = tuple(options.get(name) for name in TELLING_VALUES) + tuple(name in options for name in TELLING_KEYS)
            first.setdefault(key, recipe)
    return list(first.values())


# --------------------------------------------------------------------------------------------------------------------
# Parsing
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository in which the data that must be downloaded lie where data/README.md says."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "data").mkdir()
    for path in (ROOT / "data").iterdir():
        (folder / "data" / path.name).symlink_to(path)
    for entry in json.loads((ROOT / "data" / "dataset_info.json").read_text("utf-8")).values():
        file_name = entry.get("file_name", "")
        if file_name.startswith("../cache/"):
            path = folder / file_name.removeprefix("../")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_is_accepted(recipe: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    assert [str(problem) for problem in check_recipe(Path("examples") / recipe)] == []


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_says_how_to_run_it(recipe: Path) -> None:
    header = (EXAMPLES / recipe).read_text("utf-8").split("\n###")[0]
    assert f"examples/{recipe}" in header


# --------------------------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, adapters of theirs, and parts of the bundled data, with scores and vectors of a teacher for the
    distillations."""
    folder = tmp_path_factory.mktemp("material")
    for architecture in sorted(set(ARCHITECTURES.values())):
        save_tiny_model(folder / architecture, architecture)
        save_adapter(folder / f"{architecture}_adapter", architecture)

    lines = (ROOT / "data/wordnet/gloss_to_noun.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:96]]
    texts = (ROOT / "data/prose/train.jsonl").read_text("utf-8").splitlines()[:64]
    draw = random.Random(0)
    scored = []
    for row in rows[:64]:
        positives, negatives = (
            value if isinstance(value, list) else [value] for value in (row["positive"], row["negative"])
        )
        scores = [draw.uniform(-5, 5) for _ in (*positives, *negatives)]
        scored.append({**row, "score": scores, "teacher_vectors": [draw.gauss(0, 1) for _ in range(HIDDEN_SIZE)]})
    sets = {"rows": rows[:64], "heldout": rows[64:], "scored": scored, "texts": [json.loads(text) for text in texts]}
    entry = {"formatting": "retrieval", "instruction": "Given a definition, retrieve the noun that it defines"}
    for name, content in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    info = {name: entry | {"file_name": f"{name}.jsonl", "task": "gloss_to_noun"} for name in sets}
    del info["texts"]["instruction"]
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def save_adapter(folder: Path, architecture: str) -> None:
    """An adapter whose effect is large, in the place of one from masked next-token prediction."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny_model(architecture), config).save_pretrained(folder)


def tiny_variant(options: dict[str, Any], material: Path, output: Path) -> dict[str, Any]:
    """A recipe with a tiny model of its architecture, the bundled data, short texts and two steps; all else is its
    own."""
    name = options["model_name_or_path"].lower()
    architecture = next(tiny for known, tiny in ARCHITECTURES.items() if known in name)
    tiny = {key: value for key, value in options.items() if key not in ENGINE_KEYS}
    tiny |= {
        "model_name_or_path": str(material / architecture),
        "dataset_dir": str(material),
        "dataset": "rows",
        "eval_dataset": "heldout",
        "do_eval": True,
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": min(2, options.get("gradient_accumulation_steps", 1)),
        "max_steps": 2,
        "save_steps": 2,
        "eval_steps": 2,
        "warmup_steps": 0,
        "max_tokens_per_batch": 512,
        "report_to": "none",
        "use_cpu": True,
    }
    tiny |= {key: min(128, options[key]) for key in options if key.endswith("_max_length") or key == "cutoff_len"}
    if "simcse_dropout" in options:
        tiny["dataset"] = "texts"
    has_teacher = options.get("contrastive_loss", "").endswith("_distillation")
    if has_teacher or {"kl_weight", "vector_weight"} & options.keys():
        tiny["dataset"] = "scored"
    if "adapter_name_or_path" in options:
        tiny["adapter_name_or_path"] = str(material / f"{architecture}_adapter")
    if "grad_cache_tokens" in options:
        tiny["grad_cache_tokens"] = 128
    if "matryoshka_dims" in options:
        tiny["matryoshka_dims"] = [HIDDEN_SIZE // 4, HIDDEN_SIZE]
    if "objectives" in options:
        tiny["objectives"] = {"gloss_to_noun": next(iter(options["objectives"].values()))}
    if "latents" in options:
        tiny |= {"latents": 8, "latent_heads": 2, "latent_head_size": 4}
    return tiny


@pytest.mark.parametrize("recipe", families(), ids=str)
@pytest.mark.usefixtures("single_process")
def test_family_trains_and_is_served_as_trained(
    recipe: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = read(recipe)
    queries, documents = ["a large animal", "part of a plant that is often green"], ["elephant", "leaf", "teapot"]
    in_training: list[Any] = []

    def evaluate(encoder: Encoder, *args: Any, **kwargs: Any) -> dict[str, float]:
        in_training[:] = encoder.encode(queries, prompt="Retrieve the noun"), encoder.encode(documents)
        return evaluate_retrieval(encoder, *args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate_retrieval", evaluate)
    run_exp(tiny_variant(options, material, tmp_path))

    state = json.loads((tmp_path / "trainer_state.json").read_text("utf-8"))
    (loss,) = [entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry]
    assert state["global_step"] == 2
    assert np.isfinite(loss)
    assert loss > 0
    assert trained_tensors(tmp_path, material) > 0

    encoder = Encoder(tmp_path, device="cpu")
    assert encoder.config.attention == options["attention"]
    assert encoder.config.pooling == options["pooling"]
    assert encoder.config.skip_instruction == options.get("skip_instruction", False)
    served = encoder.encode(queries, prompt="Retrieve the noun"), encoder.encode(documents)
    for trained, loaded in zip(in_training, served, strict=True):
        np.testing.assert_allclose(stacked(loaded), stacked(trained), atol=1e-5)
    elephant, leaf = (np.atleast_2d(each).mean(axis=0) for each in served[1][:2])
    assert np.linalg.norm(elephant - leaf) > 0.01  # what is equal is no constant


def trained_tensors(checkpoint: Path, material: Path) -> int:
    """How many tensors two steps have changed."""
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.is_file():
        return sum(bool(tensor.any()) for name, tensor in load_file(adapter).items() if "lora_B" in name)
    architecture = json.loads((checkpoint / "config.json").read_text("utf-8"))["model_type"].removesuffix("_text")
    before = load_file(material / architecture / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    return sum(not torch.equal(tensor, before[name]) for name, tensor in after.items())


# --------------------------------------------------------------------------------------------------------------------
# Documentation
# --------------------------------------------------------------------------------------------------------------------


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("contrastive.md") == declared_options(ContrastiveOptions)


@pytest.mark.parametrize("recipe", [each for each in RECIPES if read(each).get("stage") == "contrastive"], ids=str)
def test_recipe_is_listed(recipe: Path) -> None:
    assert f"(../examples/{recipe})" in (ROOT / "docs" / "recipes.md").read_text("utf-8")
