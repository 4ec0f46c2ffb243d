"""A text that was memorized is completed, filled in and written from nothing; also by the command."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llamafactory_embed.cli import main
from llamafactory_embed.model.mask_token import EMBEDDING_NAME, PARAMETER, MaskedTokenRecord
from llamafactory_embed.sampling.checkpoint import load_sampler
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.sampling.memory import MASK, TEXT, memorize
from tests.tiny_models import save_tiny_model, tiny_tokenizer


LENGTH = len(tiny_tokenizer()(TEXT)["input_ids"])  # BOS in front; EOS is behind it
SETTINGS = SamplingSettings(steps=LENGTH + 4, max_new_tokens=LENGTH + 4)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "topk_low_score"},
        {"algorithm": "entropy", "temperature": 0.5},
        {"confidence_threshold": 0.9},
        {"confidence_factor": 1.0, "block_length": 8, "cache": "prefix"},
        {"confidence_threshold": 0.9, "block_length": 8, "cache": "dual"},
    ],
    ids=str,
)
def test_the_text_is_written_whatever_the_sampler(shift: bool, changes: dict[str, object]) -> None:
    sampler = load_sampler(memorize(shift), dataclasses.replace(SETTINGS, **changes), device="cpu")
    prompt = sampler.tokenizer("To be prepared")["input_ids"]
    from_nothing, completed = sampler.complete([[], prompt])
    assert sampler.decode(from_nothing.text) == TEXT
    assert sampler.decode(completed.text) == TEXT
    assert completed.ended
    tokens = sampler.tokenizer(TEXT)["input_ids"]
    holes = [index % 3 > 0 for index in range(len(tokens))]
    (filled,) = sampler.fill([tokens], [holes])
    assert filled.text == tokens


def test_a_sure_network_needs_fewer_forwards() -> None:
    forwards = {}
    for threshold in (None, 0.9):
        sampler = load_sampler(
            memorize(False), dataclasses.replace(SETTINGS, confidence_threshold=threshold), device="cpu"
        )
        assert sampler.decode(sampler.complete([[]])[0].text) == TEXT
        forwards[threshold] = sampler.forwards
    assert forwards[0.9] <= forwards[None] / 4


# --------------------------------------------------- the command ---------------------------------------------------


def test_command_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call = [
        "sample",
        str(memorize(False)),
        "--device",
        "cpu",
        "--temperature",
        "0",
        "--max-new-tokens",
        str(LENGTH + 4),
    ]
    picture = tmp_path / "settling.gif"
    assert main([*call, "--steps", str(LENGTH + 4), "--prompt", "To be", "--count", "2", "--gif", str(picture)]) == 0
    assert capsys.readouterr().out == f"{TEXT}\n{TEXT}\n"
    with Image.open(picture) as animation:
        assert animation.n_frames > 10
    gap = TEXT.replace("prepared for", "[[6]]")
    known = len(tiny_tokenizer()(" prepared for", add_special_tokens=False)["input_ids"])
    assert main([*call, "--infill", gap.replace(" [[6]]", f"[[{known}]]"), "--algorithm", "entropy"]) == 0
    assert capsys.readouterr().out == f"{TEXT}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "`diffusion_steps` must be at least 1"),
        (["--cache", "dual"], "set `block_length`"),
        (["--infill", "no gap"], "has no gap"),
        (["--chat", "hello"], "has none: use `--prompt`"),
        (["--count", "0"], "`--count` must be at least 1"),
        (["--max-new-tokens", "0"], "`max_new_tokens` must be at least 1"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(memorize(False)), "--device", "cpu", *arguments]) == 1
    assert sentence in capsys.readouterr().err


# --------------------------------------------------- checkpoints ---------------------------------------------------


def test_an_adapter_brings_its_mask_embedding(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")  # no row for the mask
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    tiny_tokenizer().save_pretrained(adapter)
    vector = torch.randn(32)
    save_file({PARAMETER: vector}, adapter / EMBEDDING_NAME)
    MaskedTokenRecord("<mask>", MASK, shift=True, base_model=str(base)).save(adapter)

    sampler = load_sampler(adapter, SETTINGS, device="cpu")
    assert sampler.shift
    assert sampler.mask_token == MASK
    torch.testing.assert_close(sampler.model.get_input_embeddings()(torch.tensor([MASK]))[0], vector)
    merged = dict(sampler.model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    plain = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    assert not torch.equal(merged, plain["model.layers.0.self_attn.q_proj.weight"])
    assert len(sampler.complete([[0, 5]])[0].text) > 2

    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}), "utf-8")
    MaskedTokenRecord("<mask>", MASK, shift=True).save(adapter)
    with pytest.raises(ValueError, match="does not name its base model"):
        load_sampler(adapter)


def test_a_model_that_never_saw_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no embedding for its mask token '<mask>'"):
        load_sampler(save_tiny_model(tmp_path))
    assert load_sampler(tmp_path, mask_token="eos", device="cpu").mask_token == tiny_tokenizer().eos_token_id


def test_a_family_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}), "utf-8")
    with pytest.raises(ValueError, match="set `mask_token` and `shift`"):
        load_sampler(folder)


def test_a_row_that_nobody_trained_is_no_mask_token(tmp_path: Path) -> None:
    """Embedding matrices often have more rows than there are tokens: one of those is not yet a mask."""
    with pytest.raises(ValueError, match="no embedding for its mask token '<mask>'"):
        load_sampler(save_tiny_model(tmp_path, vocab_size=MASK + 20))


def on_the_hub(name: str, folder: Path, cache: Path) -> str:
    """As if a repository had been downloaded before."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd", "utf-8")
    return name


def test_checkpoints_on_the_hub_are_what_they_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what lies beside the weights: the record, and an adapter's embedding of its mask token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    whole = load_sampler(on_the_hub("someone/memory", memorize(False), tmp_path / "cache"), SETTINGS, device="cpu")
    assert not whole.shift  # gpt2 would have one, if the record were not found
    assert whole.decode(whole.complete([[]])[0].text) == TEXT

    base = save_tiny_model(tmp_path / "base")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear")) \
        .save_pretrained(tmp_path / "adapter")  # fmt: skip
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    vector = torch.randn(32)
    save_file({PARAMETER: vector}, tmp_path / "adapter" / EMBEDDING_NAME)
    MaskedTokenRecord("<mask>", MASK, shift=False, base_model=str(base)).save(tmp_path / "adapter")
    name = on_the_hub("someone/adapter", tmp_path / "adapter", tmp_path / "cache")
    adapted = load_sampler(name, SETTINGS, device="cpu")
    torch.testing.assert_close(adapted.model.get_input_embeddings()(torch.tensor([MASK]))[0], vector)
    assert MaskedTokenRecord.find([str(base), name], cache_dir=str(tmp_path / "cache")) == MaskedTokenRecord(
        "<mask>", MASK, shift=False, base_model=str(base)
    )
    with pytest.raises(ValueError, match="nobody/nothing is no folder, and the hub does not give it"):
        load_sampler("nobody/nothing")


def test_an_adapter_with_a_larger_vocabulary(tmp_path: Path) -> None:
    """`resize_vocab: true` under LoRA saves embedding and head with the adapter, with more rows than the base has."""
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(MASK + 20)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        adapted.get_input_embeddings().weight.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "adapter")
    MaskedTokenRecord("<mask>", MASK, shift=True, base_model=str(base)).save(tmp_path / "adapter")
    sampler = load_sampler(tmp_path / "adapter", SETTINGS, device="cpu")
    tokens = torch.tensor([[5, MASK, 7]])
    found, expected = (each.get_input_embeddings()(tokens) for each in (sampler.model, adapted))
    torch.testing.assert_close(found, expected)
