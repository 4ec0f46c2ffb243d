"""`recipe check` says what the run would say, for recipes that our stages refuse whatever the data are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed.recipe import check_recipe


RETRIEVAL = {"stage": "contrastive", "dataset": "pairs"}
TDRO = {"stage": "tdro", "dataset": "pairs"}
WORDS = {"stage": "word-task", "dataset": "words"}
DDM = {"stage": "ddm", "dataset": "texts", "cutoff_len": 48}
PREDICT = {**DDM, "do_predict": True, "val_size": 0.5, "block_size": 0}

# Recipe, and a part of the sentence.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**RETRIEVAL, "query_template": "Query"}, "`query_template` must contain {text} once"),
    ({**RETRIEVAL, "document_template": "{text} {name}"}, "`document_template` may hold"),
    ({**RETRIEVAL, "contrastive_loss": "repllama", "num_negatives": 0}, "set `num_negatives` to at least 1"),
    ({**RETRIEVAL, "packing": False, "sampling_cache": "dual"}, "`sampling_cache` is an option of `stage: ddm`"),
    ({**RETRIEVAL, "loss_temperature": 0}, "`loss_temperature` must be at least"),
    ({**TDRO, "do_train": False, "do_eval": True, "val_size": 0.5}, "`stage: tdro` finds weights by training"),
    ({**TDRO, "streaming": True, "max_steps": 2}, "`streaming`: a stream does not tell the size of its task"),
    ({**TDRO, "ref_model_adapters": "somewhere"}, "`ref_model_adapters` needs `ref_model`"),
    ({**TDRO, "num_negatives": 0}, "set `num_negatives` to at least 1"),
    ({**TDRO, "query_template": "{text}{text}"}, "`query_template` must contain {text} once"),
    ({**TDRO, "tdro_optimizer": "adamw", "tdro_momentum": 0.9}, "`tdro_momentum` belongs to"),
    ({**TDRO, "tdro_in_batch_negatives": True, "tdro_cache_reference": True}, "`tdro_cache_reference` keeps a loss"),
    ({**RETRIEVAL, "kl_weight": 0.5, "contrastive_loss": "repllama"}, "`kl_weight` adds a teacher's KL divergence"),
    ({"stage": "ddm-sft", "dataset": "texts", "ddm_separator": "#"}, "`ddm_separator` belongs to `ddm_format"),
    ({**TDRO, "tdro_warmup_steps": 3}, "have no effect under `tdro_scheduler: constant`"),
    ({**TDRO, "tdro_lr": 0.0}, "`tdro_lr` is the step size"),
    ({**WORDS, "train_backbone": "lora", "finetuning_type": "full"}, "contradict each other: set both to lora"),
    ({**WORDS, "train_backbone": "full", "finetuning_type": "lora"}, "contradict each other: set both to full"),
    ({"stage": "mntp", "dataset": "texts", "mlm_probability": 1.0}, "`mlm_probability` must lie between 0 and 1"),
    ({**DDM, "block_size": 7}, "`block_size: 7` does not divide `cutoff_len: 48`"),
    ({**DDM, "stage": "ddm-sft", "block_size": 7}, "`block_size: 7` does not divide `cutoff_len: 48`"),
    ({**DDM, "block_size": 8, "anneal_steps": 5}, "unset one of them"),
    ({**DDM, "stage": "ddm-sft", "ddm_format": "diffuseq", "eos_padding": "never"}, "unset `eos_padding: never`"),
    ({**DDM, "cache_refresh_steps": 2}, "`cache_refresh_steps` needs a `sampling_cache`"),
    ({**DDM, "confidence_threshold": 0.9, "confidence_factor": 1.0}, "not both"),
    ({**DDM, "confidence_threshold": 0.9, "sampling_algorithm": "entropy"}, "use maskgit_plus, topk_margin or low_"),
    ({**PREDICT, "block_size": 8, "block_length": 4}, "`block_length: 4` contradicts `block_size: 8`"),
    ({**PREDICT, "sampling_cache": "dual", "sampling_algorithm": "origin"}, "works block by block: set `block_len"),
    ({**PREDICT, "max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
]  # fmt: skip
# What only the model or the checkpoint decides is left to the run.
LEFT_TO_THE_RUN: list[dict[str, Any]] = [
    {**PREDICT, "sampling_cache": "dual"},  # the model's family may have blocks
    {**DDM, "do_predict": True, "val_size": 0.5, "sampling_cache": "dual", "sampling_algorithm": "origin"},
    {**DDM, "do_train": False, "do_predict": True, "eval_dataset": "texts", "block_size": 7},
    {**RETRIEVAL, "contrastive_loss": "cosent", "num_negatives": 0},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "a", "positive": "b", "text": "c"}), encoding="utf-8")
    entries = {
        "pairs": {"file_name": "rows.jsonl", "formatting": "retrieval"},
        "words": {"file_name": "rows.jsonl", "formatting": "words"},
        "texts": {"file_name": "rows.jsonl", "columns": {"prompt": "text"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path


def make_recipe(changes: dict[str, Any]) -> dict[str, Any]:
    fixed = {"model_name_or_path": "./nowhere", "dataset_dir": ".", "output_dir": "out", "template": "default"}
    return {**fixed, "do_train": True, "use_cpu": True, "report_to": "none", "finetuning_type": "lora", **changes}


def check(recipe: dict[str, Any]) -> list[str]:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return [problem.sentence for problem in check_recipe("recipe.yaml")]


@pytest.mark.parametrize(("changes", "part"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_the_check_says_the_sentence_of_the_run(changes: dict[str, Any], part: str) -> None:
    from llamafactory.train.tuner import run_exp

    recipe = make_recipe(changes)
    with pytest.raises(ValueError) as refusal:  # not the OSError of a model that is not there
        run_exp(dict(recipe))
    assert part in str(refusal.value)
    assert str(refusal.value) in check(recipe)


@pytest.mark.parametrize("changes", LEFT_TO_THE_RUN)
def test_what_the_model_decides_is_left_to_the_run(changes: dict[str, Any]) -> None:
    assert check(make_recipe(changes)) == []
