"""An export that would not serve what was trained is not written, and nothing of the user's is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamafactory_embed import Encoder
from llamafactory_embed.export import export, weights
from llamafactory_embed.export.export import ExportOptions, export_checkpoint
from tests.export.checkpoints import TEXTS, Trained, train


def edit(path: Path, change: Callable[[Any], None]) -> None:
    contents = json.loads(path.read_text("utf-8"))
    change(contents)
    path.write_text(json.dumps(contents), "utf-8")


def set_values(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, lambda contents: contents.update(values))


def perturb(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        largest = max(tensors, key=lambda key: tensors[key].numel())
        tensors[largest] += 0.1 * torch.randn(tensors[largest].shape, generator=torch.Generator().manual_seed(0))
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


# What may go wrong between the checkpoint and the folder.
ACCIDENTS: dict[str, Callable[[Path], None]] = {
    "causal attention": set_values("config.json", is_causal=True),
    "weights": perturb("model.safetensors"),
    "pooling": set_values("1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True),
    "prompt": lambda folder: edit(
        folder / "config_sentence_transformers.json", lambda contents: contents["prompts"].update(next_line="search: ")
    ),
    "limit": set_values("sentence_bert_config.json", max_seq_length=40),
    "no normalization": lambda folder: edit(folder / "modules.json", lambda modules: modules.pop()),
    "what Encoder reads": set_values("embedding_config.json", pooling="bos"),
    "rotary base": lambda folder: edit(
        folder / "config.json", lambda contents: contents["rope_parameters"].update(rope_theta=500.0)
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("trained"))


def export_with_accident(
    trained: Trained, target: Path, accident: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout = export.write_layout

    def write_and_spoil(model: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        write_layout(model, tokenizer, folder, *rest)
        accident(folder)

    monkeypatch.setattr(export, "write_layout", write_and_spoil)
    with pytest.raises(ValueError, match=r"^The exported folder is not the same model: .*; nothing was written\.$"):
        export_checkpoint(trained.folder, target)


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_noticed_and_leaves_nothing(
    accident: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_with_accident(trained, tmp_path / "exported", ACCIDENTS[accident], monkeypatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pooling", "accident"),
    [
        ("eos", lambda folder: edit(folder / "tokenizer.json", lambda contents: contents.update(post_processor=None))),
        ("latent", perturb("pooler.safetensors")),
        ("multi_layer_latent", set_values("config.json", output_hidden_states=False)),
    ],
    ids=["eos", "latents", "layers"],
)
def test_accidents_of_other_poolings(
    pooling: str, accident: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(tmp_path / "trained", pooling=pooling)
    write_layout = export.write_layout

    def write_and_spoil(model: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        write_layout(model, tokenizer, folder, *rest)
        accident(folder)

    monkeypatch.setattr(export, "write_layout", write_and_spoil)
    with pytest.raises((ValueError, KeyError)):
        export_checkpoint(trained.folder, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_failed_replacement_leaves_the_earlier_export(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "exported"
    export_checkpoint(trained.folder, target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"exported exists: name a new folder, or replace .* `--overwrite`"):
        export_checkpoint(trained.folder, target)
    with monkeypatch.context() as patched:
        patched.setattr(export, "check_folder", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_checkpoint(trained.folder, target, ExportOptions(overwrite=True))
    assert (target / "notes.txt").is_file()
    export_checkpoint(trained.folder, target, ExportOptions(overwrite=True))
    assert not (target / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_folders_that_are_not_exports_are_never_replaced(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an earlier export"):
        export_checkpoint(trained.folder, tmp_path, ExportOptions(overwrite=True))
    for target in (trained.folder, trained.folder.parent):
        with pytest.raises(ValueError, match="would replace the checkpoint"):
            export_checkpoint(trained.folder, target, ExportOptions(overwrite=True))
    assert (trained.folder / "adapter_model.safetensors").is_file()


def test_a_folder_that_is_not_a_checkpoint_gets_one_sentence(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a checkpoint of an embedder: it holds no embedding_config\.json"):
        export_checkpoint(tmp_path, tmp_path / "exported")

    orphan = train(tmp_path / "orphan")
    edit(orphan.folder / "embedding_config.json", lambda contents: contents.update(base_model=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match=r"The base model .*gone of the checkpoint .* cannot be loaded"):
        export_checkpoint(orphan.folder, tmp_path / "exported")

    headless = train(tmp_path / "headless", pooling="latent")
    (headless.folder / "pooler.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no pooler.safetensors, which `pooling: latent` needs"):
        export_checkpoint(headless.folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_dequantizing_is_for_qlora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def set_quantization(config: Any) -> None:
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}

    trained = train(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"`--dequantize` is for checkpoints of QLoRA, and .*recipe.yaml has no"):
        export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dequantize=True))
    (trained.folder / "recipe.yaml").write_text("quantization_bit: 4\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Dequantizing needs a CUDA device"):
        export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dequantize=True))
    edit(trained.folder.parent / "base" / "config.json", set_quantization)
    with pytest.raises(ValueError, match="quantized by gptq, which cannot be dequantized"):
        export_checkpoint(trained.folder, tmp_path / "exported")
    whole = train(tmp_path / "whole", adapter=False)
    with pytest.raises(ValueError, match="`--dequantize` is for checkpoints of QLoRA, and this one holds no adapter"):
        export_checkpoint(whole.folder, tmp_path / "exported", ExportOptions(dequantize=True))


def test_an_adapter_of_qlora_is_merged_into_the_rounded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way around the quantization itself, which needs a GPU: here "rounding" halves the weights."""
    trained = train(tmp_path)
    (trained.folder / "recipe.yaml").write_text("quantization_bit: 4\ndouble_quantization: false\n")
    asked: dict[str, Any] = {}

    class Loader:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            asked.update(options)
            model = AutoModelForCausalLM.from_pretrained(name)
            for parameter in model.parameters():
                parameter.data = parameter.data / 2
            monkeypatch.setattr(model, "dequantize", lambda: model, raising=False)
            return model

    monkeypatch.setattr(weights, "require_cuda", lambda: None)
    monkeypatch.setattr(weights, "AutoModelForCausalLM", Loader)
    export_checkpoint(trained.folder, tmp_path / "exported", ExportOptions(dequantize=True))
    assert asked["quantization_config"].load_in_4bit
    assert asked["quantization_config"].bnb_4bit_quant_type == "nf4"
    assert not asked["quantization_config"].bnb_4bit_use_double_quant

    monkeypatch.undo()
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for parameter in original.parameters():
        parameter.data = parameter.data / 2
    original.save_pretrained(tmp_path / "base")
    wanted = Encoder(trained.folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Encoder(tmp_path / "exported", device="cpu").encode(TEXTS), wanted, atol=1e-5)
