"""Every recipe of examples/inference runs with a tiny model, and the page explains every option."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.chat import ChatModel
from llamafactory.train.tuner import run_exp
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model

from llamafactory_embed.hparams.sampling import SamplingOptions
from llamafactory_embed.sampling.algorithms import ALGORITHMS
from tests.docs.option_pages import declared_options, explained_options
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


pytestmark = pytest.mark.usefixtures("single_process")
ROOT = Path(__file__).parents[2]
RECIPES = [
    path
    for path in sorted((ROOT / "examples" / "inference").glob("*.yaml"))
    if OmegaConf.load(path).get("stage") in ("ddm", "ddm-sft")
]
# The tiny model that stands for a model of that name.
ARCHITECTURES = {
    "dream": "dream",
    "llada": "llada",
    "llama2": "llama",
    "gpt2": "gpt2",
    "prose": "llama",
    "sorting": "llama",
}
# Which need a GPU, or weights that are not here.
LEFT_OUT = ("flash_attn", "bf16", "infer_dtype", "checkpoint_dir", "save_strategy")
SPECIAL_TOKENS = ["<|mask|>", "<|mdm_mask|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"]


def read(recipe: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(recipe))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with the special tokens of the real ones, an adapter, and rows under the names that recipes use."""
    folder = tmp_path_factory.mktemp("material")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    for architecture in set(ARCHITECTURES.values()):
        save_tiny_model(folder / architecture, architecture, vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder / architecture)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny_model("llama", vocab_size=len(tokenizer)), lora).save_pretrained(folder / "adapter")

    lines = (ROOT / "data" / "prose" / "heldout.jsonl").read_text("utf-8").splitlines()[:4]
    problems = [{"question": f"What is {n} and {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(4)]
    (folder / "prose.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "gsm.jsonl").write_text("\n".join(map(json.dumps, problems)), encoding="utf-8")
    info = {
        "prose_heldout": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}},
        "gsm_test": {"file_name": "gsm.jsonl", "columns": {"prompt": "question", "response": "answer"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def tiny_variant(recipe: Path, material: Path) -> dict[str, Any]:
    """The recipe with a tiny model, few rows and few steps; all else is its own."""
    options = {name: value for name, value in read(recipe).items() if name not in LEFT_OUT}
    architecture = next(tiny for known, tiny in ARCHITECTURES.items() if known in recipe.name)
    options |= {"model_name_or_path": str(material / architecture), "max_new_tokens": 8}
    if "diffusion_steps" in options:
        options["diffusion_steps"] = 4
    if "block_length" in options:
        options["block_length"] = 4
    if "ddm_separator" in options:
        options |= {"ddm_separator": "=", "ddm_padding": "11"}  # tokens of the tiny models' tokenizer
    if "adapter_name_or_path" in options:
        options["adapter_name_or_path"] = str(material / "adapter")
    return options


@pytest.mark.parametrize(
    "recipe", [each for each in RECIPES if "do_predict" in read(each)], ids=lambda each: each.stem
)
def test_prediction(recipe: Path, material: Path, tmp_path: Path) -> None:
    options = tiny_variant(recipe, material)
    options |= {"dataset_dir": str(material), "output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    run_exp(options | {"max_samples": 3, "overwrite_cache": True})
    lines = (tmp_path / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    metrics = json.loads((tmp_path / "predict_results.json").read_text("utf-8"))
    assert metrics["predict_samples"] == len(lines) >= 3
    assert ("predict_answer_match" in metrics) == (options["eval_dataset"] == "gsm_test")
    assert len(list(tmp_path.glob("denoising_*.gif"))) == min(len(lines), options.get("denoising_pictures", 0))


@pytest.mark.parametrize("recipe", [each for each in RECIPES if "chat" in each.stem], ids=lambda each: each.stem)
def test_chat(recipe: Path, material: Path) -> None:
    model = ChatModel(tiny_variant(recipe, material) | {"infer_dtype": "float32"})
    (response,) = model.chat([{"role": "user", "content": "Why?"}])
    assert response.response_length <= 8
    assert model.engine.sampler.settings.algorithm == read(recipe).get("sampling_algorithm", "topk_low_score")


# ---------------------------------------------------- the page ----------------------------------------------------


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("sampling.md") == declared_options(SamplingOptions)


def test_page_explains_every_algorithm() -> None:
    page = (ROOT / "docs" / "sampling.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| (?:Dream|LLaDA|DiffuLLaMA) \|", page, flags=re.MULTILINE)) == set(
        ALGORITHMS
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda each: each.stem)
def test_recipe_is_listed(recipe: Path) -> None:
    assert f"(../examples/inference/{recipe.name})" in (ROOT / "docs" / "recipes.md").read_text("utf-8")
