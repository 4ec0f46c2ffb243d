"""`llamafactory-cli export` on the checkpoints of embedders, and on those of the host's own stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train import tuner
from peft import LoraConfig, get_peft_model

from tests.export.checkpoints import make_recipe, train
from tests.export.test_export import assert_same
from tests.tiny_models import save_tiny_model, tiny_model


@pytest.mark.parametrize("stage", [None, "contrastive"])
def test_an_adapter_is_exported_with_everything(stage: str | None, tmp_path: Path) -> None:
    trained = train(tmp_path, pooling="eos")
    recipe = make_recipe(tmp_path, **({} if stage is None else {"stage": stage}))
    tuner.export_model(recipe)
    assert_same(tmp_path / "exported", trained)
    tuner.export_model(recipe)  # like the host, it replaces what it wrote before
    assert_same(tmp_path / "exported", trained)


def test_all_weights(tmp_path: Path) -> None:
    trained = train(tmp_path, adapter=False)
    recipe = make_recipe(tmp_path, model_name_or_path=str(trained.folder), infer_dtype="bfloat16", export_size=1)
    del recipe["adapter_name_or_path"]
    tuner.export_model(recipe)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "exported" / "modules.json").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"export_dir": None}, "`export_dir` is missing"),
        ({"export_quantization_bit": 4, "export_quantization_dataset": "x"}, "`export_quantization_bit` has no mean"),
        ({"export_legacy_format": True}, "as safetensors only"),
        ({"export_hub_model_id": "embedder"}, "must name its owner"),
        ({"model_name_or_path": "other"}, "is not the base model of .*, which was trained on .*base: name that"),
        ({"adapter_name_or_path": ["{folder}/first", "{folder}/checkpoint"]}, "trained on the base model alone"),
        ({"adapter_name_or_path": "{folder}/first", "stage": "contrastive"}, "is not a checkpoint of an embedder"),
    ],
)
def test_contradictions_get_one_sentence(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    train(tmp_path)
    save_tiny_model(tmp_path / "other", seed=1)
    names = {"other": str(tmp_path / "other")}

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return ",".join(map(fill, value))
        return names.get(value, value.format(folder=tmp_path)) if isinstance(value, str) else value

    with pytest.raises(ValueError, match=sentence):
        tuner.export_model(make_recipe(tmp_path, **{name: fill(value) for name, value in options.items()}))
    assert not (tmp_path / "exported").exists()


def test_the_hosts_own_checkpoints_are_exported_by_the_host(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "base")
    adapted: Any = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "checkpoint")
    tuner.export_model(make_recipe(tmp_path))
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "exported" / "Modelfile").is_file()
    assert not (tmp_path / "exported" / "modules.json").exists()
    with pytest.raises(ValueError, match="Please specify `export_dir`"):
        tuner.export_model(make_recipe(tmp_path, export_dir=None))
