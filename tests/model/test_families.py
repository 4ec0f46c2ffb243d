"""Dream and LLaDA load from the originals' files, behave like any model of transformers, and are saved for the
originals' code again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.llama import modeling_llama

from attention_patch import mask_inputs, patch_attention
from llamafactory_embed.model.families import (
    DreamBaseModel,
    DreamModel,
    DreamTokenizer,
    LLaDAConfig,
    LLaDAModel,
    LLaDAModelLM,
    family_of,
)
from llamafactory_embed.model.packed import pack_texts
from tests.embedders import make_embedder
from tests.golden.case_files import GOLDEN_DIR, GoldenCase
from tests.tiny_models import save_tiny_model, tiny_config, tiny_model, tiny_tokenizer


DIFFUSION = {"dream": (DreamBaseModel, DreamModel), "llada": (LLaDAModel, LLaDAModelLM)}
AUTO_MAPS = {
    "dream": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "llada": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
}
# checkpoints as the originals write them, but for the entry that names their code
CASES = [
    GoldenCase(path.parent) for name in DIFFUSION for path in sorted((GOLDEN_DIR / name).rglob("forward*/case.json"))
]
checkpoints = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
families = pytest.mark.parametrize("family", DIFFUSION)
trust = pytest.mark.parametrize(
    "trust_remote_code",
    [
        None,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.5"), reason="remote code went first before"
            ),
        ),
    ],
)


def family_name(case: GoldenCase) -> str:
    return case.id.split("/")[0]


def copy_original(case: GoldenCase, folder: Path) -> Path:
    """The case's checkpoint with the code that its config.json names, which must not be run."""
    case.copy_model(folder)
    name = family_name(case)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"auto_map": AUTO_MAPS[name]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for kind in ("configuration", "modeling", "tokenization"):
        (folder / f"{kind}_{name}.py").write_text("raise AssertionError('remote code was run')\n", encoding="utf-8")
    return folder


def tensor_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(4, 300, shape, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------------------
# Loading and saving
# --------------------------------------------------------------------------------------------------------------------


@trust
@checkpoints
def test_original_checkpoint_gets_the_native_classes(
    case: GoldenCase, trust_remote_code: bool | None, tmp_path: Path
) -> None:
    folder = copy_original(case, tmp_path)
    decoder, with_head = DIFFUSION[family_name(case)]
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "output_loading_info": True}
    for auto_class, expected in ((AutoModel, decoder), (AutoModelForCausalLM, with_head)):
        model, report = auto_class.from_pretrained(folder, **options)
        assert type(model) is expected
        unexpected = set(report.pop("unexpected_keys"))
        assert not any(report.values()), report
        assert unexpected <= {"lm_head.weight"}  # a bare decoder has no use for it


@checkpoints
def test_saved_checkpoint_is_the_originals_again(case: GoldenCase, tmp_path: Path) -> None:
    folder = copy_original(case, tmp_path / "original")
    model = AutoModelForCausalLM.from_pretrained(folder)
    # as LLaMA-Factory does with models whose config.json names code of their own
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class()
    size = (folder / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "saved", max_shard_size=size // 3)

    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    assert not list((tmp_path / "saved").glob("*.py"))
    assert tensor_names(tmp_path / "saved") == tensor_names(folder)
    original = json.loads((folder / "config.json").read_text("utf-8"))
    original.setdefault("torch_dtype", "float32")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    del original["transformers_version"], saved["transformers_version"]
    assert original.items() <= {name: saved.get(name) for name in original}.items()
    assert set(saved) - set(original) <= {"bos_token_id", "is_causal", "rope_scaling"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")  # from several files
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@families
def test_settings_survive(family: str, tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    model = tiny_model(family, rope_parameters={"rope_theta": 777.0} | scaling).to(torch.bfloat16)
    model.resize_token_embeddings(320)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["rope_theta"] == 777.0
    assert written["rope_scaling"] == scaling
    assert written["torch_dtype"] == "bfloat16"
    assert written["vocab_size"] == written.get("embedding_size", 320) == 320
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    head_size = loaded.config.hidden_size // loaded.config.num_attention_heads
    frequencies = 777.0 ** (-torch.arange(0, head_size, 2) / head_size) / 2
    torch.testing.assert_close(loaded.base_model.rotary_emb.inv_freq, frequencies)
    assert loaded.get_output_embeddings().weight.shape == (320, loaded.config.hidden_size)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@trust
def test_dreams_tokenizer_needs_no_code_of_its_own(trust_remote_code: bool | None, tmp_path: Path) -> None:
    """The original ships vocabulary and merges, and a class that is Qwen2's under another name."""
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    mask = {"content": "<|mask|>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {"300": mask | {"normalized": False}},
        "mask_token": "<|mask|>",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tiny_config("dream").save_pretrained(tmp_path)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert type(tokenizer) is DreamTokenizer
    assert tokenizer.mask_token_id == 300
    text = "The rain had stopped."
    expected = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(expected) == text
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(text + "<|mask|>")["input_ids"] == tokenizer(text + "<|mask|>")["input_ids"]
    assert tokenizer(text + "<|mask|>")["input_ids"][-1] == 300


@families
def test_tiny_checkpoints_have_the_familys_mask_token(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, family)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(family_of(config).mask_token) == config.mask_token_id < config.vocab_size


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rope", False),
        ("alibi", True),
        ("block_type", "sequential"),
        ("residual_dropout", 0.1),
        ("multi_query_attention", True),
        ("layer_norm_with_affine", False),
    ],
)
def test_what_no_llada_checkpoint_uses_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{option}: {value}` in the config.json"):
        LLaDAConfig(**{option: value})


@pytest.mark.parametrize(
    "imported",
    [
        "from llamafactory_embed import Encoder",
        "import llamafactory_embed.model.families",
        pytest.param(
            "import llamafactory.model",
            marks=pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="needs LLaMA-Factory"),
        ),
    ],
)
def test_whoever_loads_models_knows_the_families(imported: str, tmp_path: Path) -> None:
    """In a process that has done nothing but that."""
    for family in DIFFUSION:
        tiny_model(family).save_pretrained(tmp_path / family)
    code = f"{imported}\nimport sys\nfrom transformers import AutoModelForCausalLM\n" + (
        "print('loaded', *(type(AutoModelForCausalLM.from_pretrained(folder)).__name__ for folder in sys.argv[1:]))"
    )
    folders = [str(tmp_path / family) for family in DIFFUSION]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
    assert "loaded DreamModel LLaDAModelLM" in done.stdout


# --------------------------------------------------------------------------------------------------------------------
# As models of transformers
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@families
def test_every_token_sees_every_real_token(family: str, backend: str) -> None:
    """Without any patch, with padding on both sides."""
    model = tiny_model(family)
    model.set_attn_implementation(backend)
    assert not any(getattr(module, "is_causal", False) for module in model.modules())
    tokens = random_tokens(3, 9)
    real = torch.tensor([[1] * 9, [0] * 3 + [1] * 6, [1] * 6 + [0] * 3])
    with torch.no_grad():
        states = model.base_model(tokens, attention_mask=real).last_hidden_state
        for row, keep, state in zip(tokens, real.bool(), states, strict=True):
            alone = model.base_model(row[keep][None]).last_hidden_state[0]
            torch.testing.assert_close(state[keep], alone, atol=1e-5, rtol=1e-5)
            changed = row[keep].clone()
            changed[-1] = 4 + (changed[-1] + 1) % 290
            moved = (model.base_model(changed[None]).last_hidden_state[0] - alone).abs().amax(dim=-1)
            assert (moved > 1e-3).all()


@pytest.mark.parametrize("use_reentrant", [True, False])
@families
def test_gradient_checkpointing_changes_nothing(family: str, use_reentrant: bool) -> None:
    tokens, weights = random_tokens(2, 7), torch.randn(2, 7, 301, generator=torch.Generator().manual_seed(1))
    gradients = []
    for is_on in (False, True):
        model = tiny_model(family).train()
        if is_on:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        (model(tokens).logits * weights).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-5)


@families
def test_cached_keys_serve_a_suffix(family: str) -> None:
    """What samplers with a prefix cache rely on: the prefix, which cannot see what follows, is computed once."""
    model = tiny_model(family)
    model.set_attn_implementation("sdpa")
    tokens, prefix = random_tokens(2, 9), 5
    allowed = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    allowed[..., :prefix, prefix:] = False
    with torch.no_grad():
        expected = model(tokens, **mask_inputs(model, allowed), use_cache=False).logits
        cache = DynamicCache(config=model.config)
        first = model(tokens[:, :prefix], past_key_values=cache, use_cache=True).logits
        rest = model(tokens[:, prefix:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first, rest], dim=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_block_of_llada_takes_its_cache_under_either_name(name: str) -> None:
    """The decoder hands it over as `past_key_values`; from transformers 5.24 on, as `cache`."""
    model = tiny_model("llada").model
    block, tokens, prefix = model.layers[0], random_tokens(2, 9), 5
    states, positions = model.embed_tokens(tokens), torch.arange(9)[None]
    cache = DynamicCache(config=model.config)

    def attend(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return block(states, None, model.rotary_emb(states, positions), **{name: cache})

    with torch.no_grad():
        whole = block(states, None, model.rotary_emb(states, positions))
        attend(states[:, :prefix], positions[:, :prefix])
        suffix = attend(states[:, prefix:], positions[:, prefix:])
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(suffix, whole[:, prefix:], atol=1e-5, rtol=1e-5)


@families
def test_adapters_have_the_originals_names_and_load_again(family: str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tokens = random_tokens(2, 7)
    with torch.no_grad():
        expected = model(tokens).logits
        assert not torch.allclose(expected, tiny_model(family)(tokens).logits, atol=1e-2)
        model.save_pretrained(tmp_path)
        modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensor_names(tmp_path)}
        original = {name.removesuffix(".weight") for name, tensor in tiny_model(family).named_parameters()}
        assert modules < original
        merged = PeftModel.from_pretrained(tiny_model(family), tmp_path).merge_and_unload()
        torch.testing.assert_close(merged(tokens).logits, expected, atol=1e-4, rtol=1e-4)


@families
def test_left_to_right_training_and_generation_are_refused(family: str) -> None:
    """A bidirectional model that is asked for the next token copies it: nothing would look wrong."""
    model, tokens = tiny_model(family), random_tokens(1, 5)
    with pytest.raises(ValueError, match="train it with `stage: ddm`"):
        model(tokens, labels=tokens)
    with pytest.raises(ValueError, match="`generate` cannot sample"):
        model.generate(tokens, max_new_tokens=2)


@families
def test_embedder_trains_all_but_the_head(family: str) -> None:
    """A parameter without a gradient is one that DDP waits for."""
    model = make_embedder(family)
    tokens = random_tokens(2, 7).tolist()
    model(pack_texts(tokens)).square().sum().backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert (
        frozen
        == without_gradient
        == {f"backbone.{'lm_head' if family == 'dream' else 'model.transformer.ff_out'}.weight"}
    )


def test_llada_rotates_in_full_precision_as_configured() -> None:
    tokens, cosines = random_tokens(1, 5), []
    for full in (True, False):
        model = tiny_model("llada", rope_full_precision=full).to(torch.bfloat16)
        with patch_attention(model, backend="sdpa"), torch.no_grad():
            hidden = model.get_input_embeddings()(tokens)
            cosines.append(model.base_model.rotary_emb(hidden, torch.arange(5)[None])[0])
            assert model(tokens).logits.dtype == torch.bfloat16
    assert [cosine.dtype for cosine in cosines] == [torch.float32, torch.bfloat16]


def test_what_liger_puts_into_llamas_module_serves_llada(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class FusedRMSNorm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            calls.append("norm")
            return super().forward(hidden_states)

    rotate = modeling_llama.apply_rotary_pos_emb

    def fused_rotate(*args: Any, **kwargs: Any) -> Any:
        calls.append("rotate")
        return rotate(*args, **kwargs)

    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", FusedRMSNorm)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", fused_rotate)
    tiny_model("llada")(random_tokens(1, 5))
    assert calls == ["norm", "rotate", "norm"] * 2 + ["norm"]
