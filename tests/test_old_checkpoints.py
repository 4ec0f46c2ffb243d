"""Checkpoints that an earlier commit (0eb9fb8) wrote give the same numbers as on the day they were written.

`tests/fixtures/make_old_checkpoints.py` trained them and measured them with the functions of this file. The
checkpoints name their base model by a path relative to their folder, where every test here runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamafactory.train.tuner import run_exp

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.weights import read_weights, task_shares
from llamafactory_embed.sampling.checkpoint import load_sampler
from llamafactory_embed.sampling.network import LanguageModelNetwork


FOLDER = Path(__file__).with_name("fixtures") / "checkpoints_0eb9fb8"
TEXTS = ["Where is the river?", "a", "The old house stood empty for many years, and nobody asked why."]
INSTRUCTION = "Find the answer"

LORA = {"finetuning_type": "lora", "lora_rank": 2, "lora_target": "all"}
EMBEDDERS = ("contrastive-lora-latent", "contrastive-full-mean")
TOKEN_MODELS = ("mntp-lora-mask", "ddm-full-blocks", "ddm-lora")

# Evaluations by recipe, each from a checkpoint as a user would name it.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "contrastive-lora-latent": {
        **LORA,
        "stage": "contrastive",
        "model_name_or_path": "base",
        "adapter_name_or_path": "contrastive-lora-latent",
        "pooling": "latent",
        "latents": 4,
        "latent_heads": 4,
        "eval_dataset": "pairs",
    },
    "contrastive-full-mean": {
        "stage": "contrastive",
        "model_name_or_path": "contrastive-full-mean",
        "eval_dataset": "pairs",
    },
    "mntp-lora-mask": {
        **LORA,
        "stage": "mntp",
        "model_name_or_path": "base",
        "adapter_name_or_path": "mntp-lora-mask",
        "eval_dataset": "documents",
    },
    "ddm-full-blocks": {
        "stage": "ddm",
        "model_name_or_path": "ddm-full-blocks",
        "block_size": 8,
        "eval_dataset": "documents",
    },
    "ddm-lora": {
        **LORA,
        "stage": "ddm",
        "model_name_or_path": "base",
        "adapter_name_or_path": "ddm-lora",
        "eval_dataset": "documents",
    },
    "word-task": {
        **LORA,
        "stage": "word-task",
        "model_name_or_path": "base",
        "adapter_name_or_path": "word-task",
        "train_backbone": "lora",
        "merge_subwords": True,
        "do_predict": True,
        "eval_dataset": "words",
    },
}


# ---------------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------------


def embed(checkpoint: str) -> np.ndarray:
    """Of texts as documents and as queries, [6, d]."""
    encoder = Encoder(checkpoint, device="cpu", dtype=torch.float32)
    return np.concatenate([encoder.encode(TEXTS), encoder.encode(TEXTS, prompt=INSTRUCTION)])


def masked_logits(checkpoint: str) -> np.ndarray:
    """What the model expects at every third token of the texts, [N, V]."""
    sampler = load_sampler(checkpoint, device="cpu", dtype=torch.float32)
    network = LanguageModelNetwork(
        sampler.model,
        shift=sampler.shift,
        block_size=sampler.settings.block_size,
        sliding_window=sampler.sliding_window,
    )
    logits = []
    for text in TEXTS:
        tokens = torch.tensor([sampler.tokenizer(text)["input_ids"]])
        is_masked = torch.arange(tokens.shape[-1])[None] % 3 == 1
        tokens[is_masked] = sampler.mask_token
        with torch.inference_mode():
            logits.append(network.head(network.states(tokens, torch.ones_like(is_masked), is_masked)))
    return torch.cat(logits).numpy()


def evaluate(checkpoint: str, output_dir: Path) -> dict[str, float]:
    """The metrics of the recipe in `EVALUATIONS`, except those of the clock and the exponential of the loss, which
    multiplies its rounding errors."""
    recipe = {
        "finetuning_type": "full",
        "do_train": False,
        "do_eval": True,
        "dataset_dir": "data",
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(output_dir),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **EVALUATIONS[checkpoint],
    }
    run_exp(recipe)
    metrics = json.loads((output_dir / "eval_results.json").read_text(encoding="utf-8"))
    left_out = ("_runtime", "_per_second", "_perplexity", "_perplexity_bound")
    return {name: value for name, value in metrics.items() if not name.endswith(left_out)}


# ---------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(FOLDER, tmp_path_factory.mktemp("old") / "checkpoints")


@pytest.fixture(autouse=True)
def beside_the_checkpoints(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoints)


def assert_as_written(computed: np.ndarray, checkpoint: str) -> None:
    """To 1e-5 of the largest number."""
    expected = np.load(Path("expected", f"{checkpoint}.npy"))
    assert computed.shape == expected.shape
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("checkpoint", EMBEDDERS)
def test_an_embedder_embeds_as_it_did(checkpoint: str) -> None:
    assert_as_written(embed(checkpoint), checkpoint)


@pytest.mark.parametrize("checkpoint", TOKEN_MODELS)
def test_a_model_of_masked_tokens_predicts_as_it_did(checkpoint: str) -> None:
    assert_as_written(masked_logits(checkpoint), checkpoint)


def test_what_the_records_say_is_applied() -> None:
    samplers = {name: load_sampler(name, device="cpu") for name in TOKEN_MODELS}
    assert samplers["ddm-full-blocks"].settings.block_size == 8
    assert {name: sampler.shift for name, sampler in samplers.items()} == {
        "mntp-lora-mask": True,
        "ddm-full-blocks": True,
        "ddm-lora": False,
    }
    assert samplers["mntp-lora-mask"].mask_token == 300  # added behind the 300 tokens of the base
    assert samplers["ddm-lora"].tokenizer.convert_ids_to_tokens(samplers["ddm-lora"].mask_token) == "_"


@pytest.mark.parametrize("checkpoint", EVALUATIONS)
def test_a_recipe_evaluates_a_checkpoint_as_it_did(checkpoint: str, tmp_path: Path) -> None:
    expected = json.loads(Path("expected", "metrics.json").read_text(encoding="utf-8"))[checkpoint]
    assert expected
    assert evaluate(checkpoint, tmp_path) == pytest.approx(expected, rel=1e-5)


def test_a_classifier_of_words_labels_as_it_did(tmp_path: Path) -> None:
    evaluate("word-task", tmp_path)
    expected = Path("expected", "word-task.conll").read_text(encoding="utf-8")
    assert len({line.split("\t")[-1] for line in expected.splitlines() if line}) > 1
    assert (tmp_path / "predictions.conll").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("name", ["curr", "mean", "ema", "top50"])
def test_task_weights_are_read_as_they_were_written(name: str) -> None:
    path = Path("tdro", f"{name}_weights.json")
    written = json.loads(path.read_text(encoding="utf-8"))["domain_weights"]
    shares = task_shares(str(path), ["pairs", "other_pairs"], [12, 6])
    assert read_weights(str(path)) == written
    assert shares == [pytest.approx(written.get(task, 0.0)) for task in ("pairs", "other_pairs")]
    assert shares[0] != shares[1]
