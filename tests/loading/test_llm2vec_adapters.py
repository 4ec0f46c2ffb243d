"""Adapters of a bare decoder and of a causal language model, turned into each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from llamafactory_embed.loading.llm2vec_adapters import (
    AdapterFiles,
    ModuleNames,
    adapter_for_causal_lm,
    convert_adapter,
    find_adapter_layout,
    save_as_llm2vec,
)
from tests.tiny_models import tiny_config, tiny_model, tiny_tokenizer


FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "dream", "llada"]
TOKENS = torch.tensor([[5, 9, 40, 7, 3, 100]])

# What an adapter may be made of. A pattern has to match the whole name of a module.
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "pattern": {"target_modules": r"(.*\.)?(layers|h|blocks)\.1\..*(q_proj|c_attn)"},
    "ranks": {
        "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"^(h|layers)\.0\..*": 3},
    },
}  # fmt: skip


def make_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """A random adapter, saved as its model names it."""
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


def last_states(model: Any) -> torch.Tensor:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return base.base_model(input_ids=TOKENS).last_hidden_state


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str, kind: str, tmp_path: Path) -> None:
    modules = ModuleNames.of_config(tiny_config(family))
    make_adapter(tiny_model(family).base_model, tmp_path / "made", **ADAPTERS[kind])
    expected = last_states(PeftModel.from_pretrained(tiny_model(family).base_model, tmp_path / "made").eval())
    assert not torch.allclose(expected, last_states(tiny_model(family)), atol=1e-2)

    converted = adapter_for_causal_lm(tmp_path / "made", modules, tmp_path / "cache")
    on_causal_lm = PeftModel.from_pretrained(tiny_model(family), converted).eval()
    torch.testing.assert_close(last_states(on_causal_lm), expected, atol=1e-5, rtol=1e-5)
    assert adapter_for_causal_lm(converted, modules, tmp_path / "cache") == converted

    convert_adapter(AdapterFiles.find(converted), tmp_path / "back", "decoder", modules)
    made, back = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("made", "back"))
    assert made.keys() == back.keys()
    assert all(torch.equal(made[name], back[name]) for name in made)
    on_decoder = PeftModel.from_pretrained(tiny_model(family).base_model, tmp_path / "back").eval()
    torch.testing.assert_close(last_states(on_decoder), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", [r"^model\.layers\.0\..*q_proj", "model.layers.0.self_attn.q_proj"])
def test_patterns_of_a_causal_language_model(pattern: str, tmp_path: Path) -> None:
    """Its ranks hang on whole names, which change."""
    options = {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "rank_pattern": {pattern: 1}}
    make_adapter(tiny_model("llama"), tmp_path / "made", **options)
    expected = last_states(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "made").eval())
    modules = ModuleNames.of_config(tiny_config("llama"))
    convert_adapter(AdapterFiles.find(tmp_path / "made"), tmp_path / "decoder", "decoder", modules)
    on_decoder = PeftModel.from_pretrained(tiny_model("llama").base_model, tmp_path / "decoder").eval()
    torch.testing.assert_close(last_states(on_decoder), expected, atol=1e-5, rtol=1e-5)


def test_embeddings_trained_as_a_whole(tmp_path: Path) -> None:
    options = {"target_modules": r"layers\.0\..*q_proj", "modules_to_save": ["embed_tokens"]}
    folder = make_adapter(tiny_model("llama").base_model, tmp_path / "made", **options)
    expected = last_states(PeftModel.from_pretrained(tiny_model("llama").base_model, folder).eval())
    converted = adapter_for_causal_lm(folder, ModuleNames.of_config(tiny_config("llama")), tmp_path / "cache")
    on_causal_lm = PeftModel.from_pretrained(tiny_model("llama"), converted)
    torch.testing.assert_close(last_states(on_causal_lm.eval()), expected, atol=1e-5, rtol=1e-5)
    adapted = {name.split(".lora_")[0] for name, _ in on_causal_lm.named_parameters() if ".lora_" in name}
    assert adapted == {"base_model.model.model.layers.0.self_attn.q_proj"}


def test_weights_of_old_releases_of_peft(tmp_path: Path) -> None:
    folder = make_adapter(tiny_model("llama").base_model, tmp_path / "made", target_modules=["q_proj"])
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    converted = adapter_for_causal_lm(folder, ModuleNames.of_config(tiny_config("llama")), tmp_path / "cache")
    found = load_file(Path(converted) / "adapter_model.safetensors")
    expected = {name.replace(".model.layers.", ".model.model.layers."): each for name, each in weights.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_changed_adapter_is_converted_anew_and_nothing_else_is_left(tmp_path: Path) -> None:
    modules = ModuleNames.of_config(tiny_config("llama"))
    folder = make_adapter(tiny_model("llama").base_model, tmp_path / "made", target_modules=["q_proj"])
    first = adapter_for_causal_lm(folder, modules, tmp_path / "cache")
    make_adapter(tiny_model("llama").base_model, folder, target_modules=["v_proj"])
    second = adapter_for_causal_lm(folder, modules, tmp_path / "cache")
    assert first != second
    assert sorted(map(str, (tmp_path / "cache").iterdir())) == sorted([first, second])
    convert_adapter(AdapterFiles.find(folder), second, "causal_lm", modules)  # another process was faster
    assert sorted(map(str, (tmp_path / "cache").iterdir())) == sorted([first, second])


def test_a_folder_inside_the_adapters(tmp_path: Path) -> None:
    """The host looks for every adapter in its `adapter_folder`."""
    make_adapter(tiny_model("llama").base_model, tmp_path / "made" / "part", target_modules=["q_proj"])
    modules = ModuleNames.of_config(tiny_config("llama"))
    converted = adapter_for_causal_lm(tmp_path / "made", modules, tmp_path / "cache", subfolder="part")
    PeftModel.from_pretrained(tiny_model("llama"), converted, subfolder="part")


def test_what_cannot_be_converted_gets_one_sentence(tmp_path: Path) -> None:
    modules = ModuleNames.of_config(tiny_config("llama"))
    folder = make_adapter(tiny_model("gpt2"), tmp_path / "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(ValueError, match=r"gpt2` changes `transformer\.h\.0.*`, .* made for another architecture"):
        adapter_for_causal_lm(folder, modules, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        adapter_for_causal_lm(tmp_path, modules, tmp_path / "cache")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        adapter_for_causal_lm(folder, modules, tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"`no/such-adapter` holds no .* \(it is no folder, and the hub does not give it\)"
    ):
        adapter_for_causal_lm("no/such-adapter", modules, tmp_path / "cache")
    head = make_adapter(tiny_model("llama"), tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"`lm_head.*lies outside the decoder"):
        convert_adapter(AdapterFiles.find(head), tmp_path / "out", "decoder", modules)
    with pytest.raises(ValueError, match="changes `nothing`"):
        find_adapter_layout([], modules, "empty")


def test_the_names_are_those_of_the_file(tmp_path: Path) -> None:
    """A converted configuration still says everything else that the adapter's said."""
    folder = make_adapter(
        tiny_model("llama").base_model, tmp_path / "made", target_modules=["q_proj"], use_rslora=True
    )
    converted = adapter_for_causal_lm(folder, ModuleNames.of_config(tiny_config("llama")), tmp_path / "cache")
    before, after = (json.loads(Path(each, "adapter_config.json").read_text()) for each in (folder, converted))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"task_type", "auto_mapping"}
    assert after["task_type"] == "CAUSAL_LM"


def test_an_adapter_becomes_a_folder_of_llm2vec(tmp_path: Path) -> None:
    """Upon the bare decoder it gives the states that it gave below the head, and it comes back unchanged."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    modules = ModuleNames.of_model(tiny_model("llama"))
    settings = {"pooling_mode": "mean", "max_length": 512}
    save_as_llm2vec(tmp_path / "adapter", tmp_path / "llm2vec", modules, settings, tiny_tokenizer())
    assert json.loads((tmp_path / "llm2vec" / "llm2vec_config.json").read_text("utf-8")) == settings
    assert (tmp_path / "llm2vec" / "tokenizer.json").is_file()
    # Keys that PEFT has learned since the days of LLM2Vec would make a PEFT of that time refuse the file.
    written = json.loads((tmp_path / "llm2vec" / "adapter_config.json").read_text("utf-8"))
    assert not {"peft_version", "alora_invocation_tokens", "ensure_weight_tying", "eva_config"} & written.keys()
    assert [path.name for path in tmp_path.glob(".converting-*")] == []

    ids = torch.arange(3, 20)[None]
    decoder = PeftModel.from_pretrained(tiny_model("llama").base_model, tmp_path / "llm2vec").eval()
    expected = model.eval().get_base_model().base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(decoder(input_ids=ids).last_hidden_state, expected)
    back = AdapterFiles.find(adapter_for_causal_lm(tmp_path / "llm2vec", modules, tmp_path / "cache")).read_weights()
    before = AdapterFiles.find(tmp_path / "adapter").read_weights()
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="already exists: name a new folder"):
        save_as_llm2vec(tmp_path / "adapter", tmp_path / "llm2vec", modules, settings, tiny_tokenizer())
