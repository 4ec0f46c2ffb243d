"""`llamafactory-cli export` of a model that was trained to predict masked tokens: nothing of it is left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.train import tuner
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from attention_patch import patch_attention
from llamafactory_embed.model.mask_token import MaskedTokenRecord, MaskToken, learn_mask_embedding, save_mask_embedding
from llamafactory_embed.sampling.checkpoint import load_sampler
from tests.export.checkpoints import make_recipe
from tests.tiny_models import HIDDEN_SIZE, VOCABULARY_SIZE, save_tiny_model, tiny_tokenizer


MASK = VOCABULARY_SIZE  # behind the base model's embedding matrix
TOKENS = torch.tensor([[0, 40, MASK, 42, MASK, 44]])


def export(folder: Path, **options: Any) -> Path:
    """Merge; None leaves an option out."""
    recipe = make_recipe(folder, infer_dtype="float32", **options)
    tuner.export_model({name: each for name, each in recipe.items() if each is not None})
    return folder / "exported"


def train_adapter(folder: Path, family: str, **overrides: Any) -> Tensor:
    """An adapter with a learned vector beside it; the logits that it gives, [L, V]."""
    base = save_tiny_model(folder / "base", family, **overrides)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted: Any = get_peft_model(model, lora)
    vector = torch.randn(HIDDEN_SIZE) * 3
    learn_mask_embedding(model, MaskToken("<mask>", MASK, is_added=True), vector)
    adapted.save_pretrained(folder / "checkpoint")
    save_mask_embedding(folder / "checkpoint", vector)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder / "checkpoint")
    record = MaskedTokenRecord(
        "<mask>", MASK, shift=False, base_model=str(base), block_size=4, sliding_window="ignore"
    )
    record.save(folder / "checkpoint")
    with patch_attention(adapted, "bidirectional", sliding_window="ignore"), torch.no_grad():
        return adapted.eval()(input_ids=TOKENS).logits[0]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"vocab_size": VOCABULARY_SIZE + 20, "tie_word_embeddings": False}),
        ("mistral", {}),
        ("gemma3", {}),
    ],
    ids=["head of its own", "tied", "rows to spare", "window", "scaled embeddings"],
)
def test_an_adapter_with_a_mask_token_becomes_one_model(
    family: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    """It gives the adapter's logits, wherever transformers loads it, and is sampled as the adapter was trained."""
    expected = train_adapter(tmp_path, family, **overrides)
    merged = export(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<mask>", MASK)
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    others = [token for token in range(expected.shape[-1]) if token != MASK]  # which the adapter has no logit for
    with torch.no_grad():
        found = model(input_ids=TOKENS, use_cache=False).logits[0]
    torch.testing.assert_close(found[:, others], expected[:, others], atol=1e-4, rtol=1e-4)

    record = MaskedTokenRecord.find([merged])
    assert record == MaskedTokenRecord("<mask>", MASK, shift=False, block_size=4, sliding_window="ignore")
    sampler = load_sampler(merged, device="cpu")
    assert (sampler.mask_token, sampler.shift, sampler.settings.block_size) == (MASK, False, 4)


def test_a_whole_model_keeps_its_record_and_its_attention(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", vocab_size=MASK + 1)
    MaskedTokenRecord("_", 65, shift=True, block_size=8).save(base)
    merged = export(tmp_path, adapter_name_or_path=None)
    assert MaskedTokenRecord.find([merged]) == MaskedTokenRecord("_", 65, shift=True, block_size=8)
    assert json.loads((merged / "config.json").read_text("utf-8"))["is_causal"] is False


def test_what_goes_to_the_hub_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[set[str]] = []
    train_adapter(tmp_path, "llama")

    def upload(self: Any, working_dir: Any, repo_id: str, **_: Any) -> None:
        pushed.append({path.name for path in Path(working_dir).iterdir()})

    monkeypatch.setattr("transformers.utils.hub.create_repo", lambda *_, **__: type("Url", (), {"repo_id": "a/b"}))
    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    export(tmp_path, export_hub_model_id="someone/model")
    assert any({"masked_tokens.json", "model.safetensors"} <= names for names in pushed)


def test_a_model_that_was_not_below_the_adapter_is_refused(tmp_path: Path) -> None:
    train_adapter(tmp_path, "llama")
    other = save_tiny_model(tmp_path / "other", vocab_size=VOCABULARY_SIZE + 3)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match=rf"other is not the model .* the id 302, not {MASK}; name .*base"):
        export(tmp_path, model_name_or_path=str(other))
    assert not (tmp_path / "exported").exists()


def test_an_ordinary_adapter_on_top_is_left_to_the_host(tmp_path: Path) -> None:
    """What was trained last is not a model of masked tokens."""
    base = save_tiny_model(tmp_path / "base", vocab_size=MASK + 1)
    MaskedTokenRecord("_", 65, shift=True).save(base)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear")
    )
    model.save_pretrained(tmp_path / "checkpoint")
    merged = export(tmp_path)
    assert not (merged / "masked_tokens.json").exists()
    assert json.loads((merged / "config.json").read_text("utf-8")).get("is_causal") is not False
