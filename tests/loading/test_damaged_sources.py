"""A damaged or ambiguous checkpoint is refused with one sentence that says which file, and what would be right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from llamafactory_embed import Encoder
from llamafactory_embed.loading.attention_pool import ATTENTION_POOL_NAME
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import make_embedder
from tests.loading.published import save_adapter, save_pooling_and_attention
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


NAMED: dict[str, Any] = {"pooling": "mean", "attention": "causal"}


class Mark:
    """An object whose unpickling leaves a file, as foreign code could do anything."""

    def __reduce__(self) -> Any:
        return open, ("unpickled", "w")


def ours(folder: Path, **options: Any) -> Path:
    save_checkpoint(make_embedder(**options), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_pooler(folder: Path) -> Path:
    (ours(folder / "a", pooling="latent") / "pooler.safetensors").unlink()
    return folder / "a"


def unknown_pooling(folder: Path) -> Path:
    edit_json(ours(folder / "a") / "embedding_config.json", pooling="middle")
    return folder / "a"


def bad_json(folder: Path) -> Path:
    (ours(folder / "a") / "embedding_config.json").write_text('{"pooling": ')
    return folder / "a"


def truncated(folder: Path) -> Path:
    path = ours(folder / "a") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder / "a"


def missing_shard(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder / "a", max_shard_size="20KB")
    sorted((folder / "a").glob("model-*.safetensors"))[1].unlink()
    tiny_tokenizer().save_pretrained(folder / "a")
    return folder / "a"


def wrong_base(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    save_tiny_model(folder / "base", hidden_size=64)
    return folder / "a"


def another_family(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    shutil.rmtree(folder / "base")
    save_tiny_model(folder / "base", "gpt2")
    return folder / "a"


def base_that_is_gone(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    shutil.rmtree(folder / "base")
    return folder / "a"


def no_base(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    edit_json(folder / "a" / "adapter_config.json", base_model_name_or_path=None)
    return folder / "a"


def two_layouts(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    shutil.copy(folder / "base" / "model.safetensors", folder / "a")
    return folder / "a"


def names_of_two_layouts(folder: Path) -> Path:
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(save_tiny_model(folder / "base"))
    model.save_pretrained(str(folder / "a"))
    path = folder / "a" / "adapter_model.safetensors"
    weights = load_file(path)
    first = next(iter(weights))
    weights[first.replace("model.model.layers", "model.layers")] = weights.pop(first)
    save_file(weights, path)
    return folder / "a"


def pickled_pool(folder: Path) -> Path:
    adapter, _, _ = save_pooling_and_attention(folder, "latent", causal=False)
    torch.save(Mark(), adapter / ATTENTION_POOL_NAME)
    return adapter


def pickled_weights(folder: Path) -> Path:
    save_tiny_model(folder / "a")
    (folder / "a" / "model.safetensors").unlink()
    torch.save({"weight": Mark()}, folder / "a" / "pytorch_model.bin")
    return folder / "a"


def foreign_pool(folder: Path) -> Path:
    adapter, _, _ = save_pooling_and_attention(folder, "latent", causal=False)
    torch.save({"linear.weight": torch.ones(2)}, adapter / ATTENTION_POOL_NAME)
    return adapter


def pool_of_another_model(folder: Path) -> Path:
    adapter, _, _ = save_pooling_and_attention(folder, "latent", causal=False)
    state = torch.load(adapter / ATTENTION_POOL_NAME, weights_only=True)
    torch.save({**state, "latents": torch.ones(4, 16)}, adapter / ATTENTION_POOL_NAME)
    return adapter


def adapter_without_weights(folder: Path) -> Path:
    save_adapter(save_tiny_model(folder / "base"), folder / "a")
    (folder / "a" / "adapter_model.safetensors").unlink()
    return folder / "a"


def unknown_mode_of_llm2vec(folder: Path) -> Path:
    save_tiny_model(folder / "a")
    (folder / "a" / "llm2vec_config.json").write_text('{"pooling_mode": "middle"}')
    return folder / "a"


def no_tokenizer(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder / "a")
    return folder / "a"


DAMAGED: dict[Callable[[Path], Path], tuple[dict[str, Any], str]] = {
    without_pooler: ({}, r"holds no pooler\.safetensors, which `pooling: latent` needs"),
    unknown_pooling: ({}, r"embedding_config\.json: `pooling` must be one of .* not 'middle'"),
    bad_json: ({}, r"embedding_config\.json is not valid JSON"),
    truncated: ({}, r"model\.safetensors is cut off or damaged .*: copy it from the checkpoint again"),
    missing_shard: (NAMED, r"lacks the shards model-00002-of-\d+\.safetensors: copy them there"),
    wrong_base: (NAMED, r"was made for a model of another size .*: name the model that it was trained on"),
    another_family: (NAMED, "it was made for another architecture"),
    base_that_is_gone: (NAMED, r"belongs to .*base, which cannot be loaded \(another place can be named in `base_mod"),
    no_base: (NAMED, "does not name its base model: name it in `base_model`"),
    two_layouts: (NAMED, "mixes the layouts of adapter and language model: keep the files of one of them"),
    names_of_two_layouts: (NAMED, "changes `modules of two layouts`"),
    pickled_pool: ({"attention": "bidirectional"}, r"attn_pool\.pt holds Python objects, which could run code"),
    pickled_weights: (NAMED, r"pytorch_model\.bin holds Python objects, which could run code"),
    foreign_pool: ({"attention": "bidirectional"}, "does not hold the pooler of Pooling-and-Attention"),
    pool_of_another_model: (
        {"attention": "bidirectional", "latent_heads": 2},
        "belongs to a model with states of 16 numbers, and .* has 32",
    ),
    adapter_without_weights: (NAMED, r"holds no adapter_model\.safetensors, the weights of its adapter: copy it"),
    unknown_mode_of_llm2vec: ({}, "asks for the unknown `pooling_mode: middle`: LLM2Vec knows mean"),
    no_tokenizer: (NAMED, "holds no tokenizer: copy tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
def test_one_sentence(damage: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, sentence = DAMAGED[damage]
    source = damage(tmp_path)
    with pytest.raises(ValueError, match=sentence) as refusal:
        Encoder(source, device="cpu", **settings)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "unpickled").exists()
