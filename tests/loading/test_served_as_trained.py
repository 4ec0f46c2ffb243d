"""What is served is what was trained, whatever the host's options have made of adapter and vocabulary.

Each run trains a step through the host; what its model computes in memory is compared with what its checkpoint
computes when it is served.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from llamafactory.train.tuner import run_exp
from torch import Tensor
from transformers import TrainerCallback

from llamafactory_embed import Encoder
from llamafactory_embed.loading.checkpoint import load_diffusion_model
from llamafactory_embed.model.token_predictor import NO_LABEL, CorruptedText, TokenPredictor, pack_corrupted_texts
from llamafactory_embed.recipe import check_recipe
from tests.e2e import contrastive_runs, ddm_runs, token_runs
from tests.tiny_models import save_tiny_model


LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
TOKENS = {"add_tokens": "zyx", "add_special_tokens": "<q>", "resize_vocab": True}
TIED = {"model": {"tie_word_embeddings": True}}

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "rslora": {**LORA, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
    "loraplus": {**LORA, "loraplus_lr_ratio": 4.0, "optim": "adamw_torch"},
    "oft": {"finetuning_type": "oft", "oft_rank": 0, "oft_block_size": 8},
    "pissa": {**LORA, "pissa_init": True},
    "pissa, exact": {**LORA, "pissa_init": True, "pissa_iter": -1},
    "pissa, converted": {**LORA, "pissa_init": True, "pissa_convert": True},
    "pissa, rslora, norm": {**LORA, "pissa_init": True, "use_rslora": True, "additional_target": "norm"},
    "pissa, dora": {**LORA, "pissa_init": True, "use_dora": True},
    "pissa, tokens": {**LORA, **TOKENS, "pissa_init": True},
    "norm": {**LORA, "additional_target": "norm"},
    "embedding and head": {**LORA, "additional_target": "embed_tokens,lm_head"},
    "embedding, tied": {**LORA, **TIED, "additional_target": "embed_tokens"},
    "tokens": {**LORA, **TOKENS},
    "tokens, tied": {**LORA, **TOKENS, **TIED},
    "tokens, norm": {**LORA, **TOKENS, "additional_target": "norm"},
    "tokens, lora on the embedding": {
        **LORA, **TOKENS, "lora_target": "q_proj,embed_tokens", "additional_target": "lm_head",
    },
    "tokens, oft": {"finetuning_type": "oft", "oft_rank": 0, "oft_block_size": 8, **TOKENS},
    "tokens, full": {"finetuning_type": "full", **TOKENS},
    "tokens, freeze": {**FREEZE, **TOKENS},
    "freeze": FREEZE,
    "freeze, norm and embedding": {**FREEZE, "freeze_extra_modules": "norm,embed_tokens"},
    "full": {"finetuning_type": "full"},
    "full, tied": {"finetuning_type": "full", **TIED},
}  # fmt: skip

# Of the token stages, those in which embedding, head or mask token differ from an embedder's.
TOKEN_STAGES = [
    ("mntp", "lora"), ("mntp", "pissa"), ("mntp", "tokens"), ("mntp", "tokens, full"), ("mntp", "freeze"),
    ("ddm", "pissa, dora"), ("ddm", "oft"), ("ddm", "embedding and head"), ("ddm", "embedding, tied"),
    ("ddm", "tokens, tied"), ("ddm", "tokens, norm"), ("ddm", "tokens, lora on the embedding"), ("ddm", "full, tied"),
]  # fmt: skip

TEXTS = ["the study of stars", "a young <q>horse", "to run zyx", "an instrument with strings, played with a bow"]
PROMPT = "A zyx line of some length, with its <q>end"


class Keep(TrainerCallback):
    """Keeps the model of a run, and what it computes before the first step."""

    def __init__(self, compute: Any) -> None:
        self.compute = compute

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model, self.tokenizer = kwargs["model"], kwargs["processing_class"]
        self.untrained = self.compute(self.model, self.tokenizer)


@pytest.fixture(scope="module")
def embedder_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return contrastive_runs.write_data(tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ddm_runs.write_data(tmp_path_factory.mktemp("documents"))


def embed(model: Any, tokenizer: Any) -> np.ndarray:
    return Encoder(model, tokenizer).encode(TEXTS)


@pytest.mark.parametrize("name", OPTIONS)
def test_embedders(name: str, embedder_data: Path, tmp_path: Path) -> None:
    options = dict(OPTIONS[name])
    model = save_tiny_model(tmp_path / "model", **options.pop("model", {}))
    keep = Keep(embed)
    recipe = contrastive_runs.recipe(model, embedder_data, tmp_path / "run", max_steps=1, learning_rate=0.5)
    run_exp(recipe | options, callbacks=[keep])
    trained = embed(keep.model, keep.tokenizer)
    assert np.abs(trained - keep.untrained).max() > 1e-4
    np.testing.assert_allclose(Encoder(tmp_path / "run", device="cpu").encode(TEXTS), trained, atol=2e-5)


def score(model: TokenPredictor, tokenizer: Any) -> Tensor:
    """The losses of some hidden tokens."""
    tokens = torch.tensor(tokenizer(PROMPT)["input_ids"])
    mask = tokenizer.mask_token_id
    if mask is None:
        mask = tokenizer.convert_tokens_to_ids("_")
    hidden = torch.arange(len(tokens)) % 3 == 1
    corrupted = CorruptedText(tokens.where(~hidden, mask), tokens.where(hidden, NO_LABEL))
    batches = pack_corrupted_texts([corrupted])
    was_training = model.training
    with torch.no_grad():
        losses = model.eval()(batches, with_correct=True).losses
    model.train(was_training)
    return losses


@pytest.mark.parametrize(("stage", "name"), TOKEN_STAGES)
def test_models_of_masked_tokens(stage: str, name: str, documents: Path, tmp_path: Path) -> None:
    options = dict(OPTIONS[name])
    model = save_tiny_model(tmp_path / "model", **options.pop("model", {}))
    if options["finetuning_type"] != "freeze":  # which does not train the embedding of an added token
        options["mask_token"] = "mask"
    keep = Keep(score)
    recipe = token_runs.recipe(model, documents, tmp_path / "run", stage=stage, max_steps=1, learning_rate=0.5)
    run_exp(recipe | options, callbacks=[keep])
    trained = score(keep.model, keep.tokenizer)
    assert float((trained - keep.untrained).abs().max()) > 1e-4
    served = load_diffusion_model(tmp_path / "run", device="cpu")
    settings = served.settings
    assert settings.mask.id < len(served.tokenizer)
    predictor = TokenPredictor(served.model, shift=settings.shift, sliding_window=settings.sliding_window)
    torch.testing.assert_close(score(predictor, served.tokenizer), trained, atol=1e-4, rtol=1e-4)


def test_a_head_whose_new_rows_would_be_lost_is_refused(documents: Path, tmp_path: Path) -> None:
    options = OPTIONS["tokens, lora on the embedding"] | {"additional_target": "norm"}
    recipe = token_runs.recipe(save_tiny_model(tmp_path / "model"), documents, tmp_path / "run", stage="ddm")
    with pytest.raises(ValueError, match=r"`lora_target` with the embedding .* \(`additional_target: lm_head`\)"):
        run_exp(recipe | options)


def test_random_weights_below_an_adapter_are_refused(embedder_data: Path, tmp_path: Path) -> None:
    """No checkpoint would hold them. `recipe check` says the same as the run."""
    recipe = contrastive_runs.recipe(save_tiny_model(tmp_path / "model"), embedder_data, tmp_path / "run", **LORA)
    recipe["train_from_scratch"] = True
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    (problem,) = check_recipe(tmp_path / "recipe.yaml")
    sentence = r"`train_from_scratch: true` with `finetuning_type: lora` .*: use .*full"
    assert re.search(sentence, problem.sentence)
    with pytest.raises(ValueError, match=sentence):
        run_exp(recipe)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"finetuning_type": "full"}), "utf-8")
    assert check_recipe(tmp_path / "recipe.yaml") == []


def test_a_quantized_model_needs_a_gpu(embedder_data: Path, tmp_path: Path) -> None:
    """What a run without one says comes from the host, before it writes a checkpoint."""
    recipe = contrastive_runs.recipe(save_tiny_model(tmp_path / "model"), embedder_data, tmp_path / "run", **LORA)
    if torch.cuda.is_available():
        pytest.skip("with a GPU it trains")
    with pytest.raises((ImportError, ValueError, RuntimeError)):
        run_exp(recipe | {"quantization_bit": 4, "quantization_method": "bnb"})
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
