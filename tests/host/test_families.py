"""What LLaMA-Factory does with Dream and LLaDA: load, adapt, apply Liger, write a chat, merge."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer, loader
from llamafactory.train.tuner import export_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory_embed.model.families import FAMILIES
from tests.tiny_models import save_tiny_model, tiny_config, tiny_model, tiny_tokenizer


families = pytest.mark.parametrize("family", ["dream", "llada"])


def load_for_training(folder: Path, **options: Any) -> Any:
    recipe = {
        "model_name_or_path": str(folder),
        "stage": "ddm",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "dataset": "unused",
        "template": "default",
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    model_args, _, _, finetuning_args, _ = get_train_args(recipe | options)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    return load_model(tokenizer, model_args, finetuning_args, is_trainable=True)


@families
def test_lora_reaches_every_layer_and_not_the_head(family: str, tmp_path: Path) -> None:
    """LLaDA's head is called `ff_out`, as the last layer of each block is."""
    model = load_for_training(save_tiny_model(tmp_path, family))
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    head = model.get_output_embeddings()
    linear = {
        f"base_model.model.{name}"
        for name, module in tiny_model(family).named_modules()
        if isinstance(module, torch.nn.Linear) and name not in ("lm_head", "model.transformer.ff_out")
    }
    assert type(head) is torch.nn.Linear
    assert not head.weight.requires_grad
    assert len(linear) == 7 * model.config.num_hidden_layers
    assert adapted == linear


@pytest.mark.parametrize("family", ["dream", "llada", "llama"])
def test_a_larger_vocabulary_trains_embedding_and_head_alone(family: str, tmp_path: Path) -> None:
    """The host goes by the last part of a name, which for LLaDA's head is that of a layer in every block."""
    folder = save_tiny_model(tmp_path, family, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    model = load_for_training(folder, resize_vocab=True)
    whole = {name for name, each in model.named_parameters() if each.requires_grad and "lora_" not in name}
    matrices = [model.get_base_model().get_input_embeddings(), model.get_base_model().get_output_embeddings()]
    assert len(whole) == 2
    assert all(matrix.weight.shape[0] >= len(tokenizer) and matrix.weight.requires_grad for matrix in matrices)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 7 * model.config.num_hidden_layers
    named = load_for_training(folder, resize_vocab=True, additional_target="wte" if family == "llada" else "lm_head")
    assert len([name for name, each in named.named_parameters() if "modules_to_save" in name]) == 1


def test_other_models_are_adapted_by_name_as_ever(tmp_path: Path) -> None:
    model = load_for_training(save_tiny_model(tmp_path, "llama"))
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(model.peft_config["default"].target_modules) == names


@pytest.mark.parametrize(("family", "served"), [("dream", "qwen2"), ("llada", "llama"), ("qwen3", "qwen3")])
def test_liger_patches_what_the_family_is_built_from(
    family: str, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[tuple[str, bool]] = []
    kernels = ModuleType("liger_kernel.transformers")
    for name in ("qwen2", "qwen3", "llama"):

        def apply(name: str = name, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True) -> None:
            applied.append((name, fused_linear_cross_entropy))

        setattr(kernels, f"apply_liger_kernel_to_{name}", apply)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", kernels)
    switched_on = SimpleNamespace(enable_liger_kernel=True)
    loader.apply_liger_kernel(tiny_config(family), switched_on, True, require_logits=True)
    loader.apply_liger_kernel(tiny_config(family), SimpleNamespace(enable_liger_kernel=False), True, True)
    assert applied == [(served, False)]


@families
def test_export_merges_an_adapter_into_the_original_layout(family: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", family)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny_model(family), config).save_pretrained(tmp_path / "adapter")
    tokens = torch.randint(4, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter")(tokens).logits
        export_model(
            {
                "model_name_or_path": str(base),
                "adapter_name_or_path": str(tmp_path / "adapter"),
                "template": "default",
                "export_dir": str(tmp_path / "merged"),
                "infer_dtype": "float32",
            }
        )
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        torch.testing.assert_close(merged(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    written = json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    assert written["model_type"] == tiny_config(family).model_type
    assert "rope_theta" in written
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tiny_model(family).state_dict())


CHATS = {
    "dream": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Well.<|im_end|>\n",
    ),
    "llada": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Well.<|eot_id|>",
    ),
}


@pytest.mark.parametrize("template", CHATS)
def test_chat_templates(template: str) -> None:
    """As the instruct models' own templates write a question; the tiny tokenizer's BOS is `<s>`."""
    tokenizer = copy.deepcopy(tiny_tokenizer())  # the host adds tokens
    arguments = SimpleNamespace(
        template=template, train_on_prompt=False, tool_format=None, default_system=None, enable_thinking=False
    )
    chat = get_template_and_fix_tokenizer(tokenizer, arguments)
    messages = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}]
    prompt, answer = chat.encode_oneturn(tokenizer, messages)
    assert (tokenizer.decode(prompt), tokenizer.decode(answer)) == CHATS[template]
    assert tokenizer.eos_token == "</s>"
    ends_turn = tokenizer.convert_tokens_to_ids(CHATS[template][1].strip().removeprefix("Well."))
    assert set(chat.get_stop_token_ids(tokenizer)) == {tokenizer.eos_token_id, ends_turn}


def test_templates_of_the_registry_exist() -> None:
    assert {family.template for family in FAMILIES} - {None} <= set(TEMPLATES)
