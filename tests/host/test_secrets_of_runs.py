"""No file that a run writes holds one of the secrets that it was given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.e2e.contrastive_runs import perform, recipe, write_data


SECRETS = {
    "hf_hub_token": "PLANTED-hf-hub-token",
    "ms_hub_token": "PLANTED-ms-hub-token",
    "om_hub_token": "PLANTED-om-hub-token",
    "hub_token": "PLANTED-hub-token",
    "swanlab_api_key": "PLANTED-swanlab-key",
    "swanlab_lark_secret": "PLANTED-lark-secret",
}
STORAGE = {
    "_redis_password": "PLANTED-password",
    "runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "PLANTED-aws", "A": "PLANTED-hub-token"}},
    "address": "ray://user:PLANTED-url@host",
}
# One step on the CPU, with a checkpoint beside the finished model.
SHORT: dict[str, Any] = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "batch_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("secrets") / "data")
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    (folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({"text": f"a text about the number {number}"}) for number in range(8)), encoding="utf-8"
    )
    (folder / "words.conll").write_text("Rome B-LOC\nsleeps O\n\nI O\nsleep O\n", encoding="utf-8")
    info["texts"] = {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}
    info["tagged"] = {"file_name": "words.conll", "formatting": "words", "column_names": ["word", "ner"]}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def files_with_secrets(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [str(path.relative_to(folder)) for path in files if b"PLANTED" in path.read_bytes()]


STAGES: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "tdro": {"tdro_measure": "loss"},
    "mntp": {"dataset": "texts"},
    "ddm": {"dataset": "texts"},
    "word-task": {"dataset": "tagged"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_no_file_of_a_run_holds_a_secret(stage: str, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    given = recipe(tiny_llama, data, tmp_path / "run", **SHORT, stage=stage, **STAGES[stage], **SECRETS)
    given |= {"ray_init_kwargs": STORAGE, "run_name": "PLANTED-hub-token"}
    perform(given)
    assert files_with_secrets(tmp_path / "run") == []
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        kept = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        assert {name: kept[name] for name in SECRETS} == dict.fromkeys(SECRETS)
        assert {name for name in kept if kept[name] != given[name]} == {*SECRETS, "ray_init_kwargs", "run_name"}
        arguments = torch.load(folder / "training_args.bin", weights_only=False)
        assert arguments.hub_token is None
        assert arguments.output_dir == given["output_dir"]


def test_words_of_a_command_line_hold_no_secret(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp

    given = recipe(tiny_llama, data, tmp_path / "run", **SHORT)
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    run_exp([*words, "--hub_token", "PLANTED-1234", "--hf_hub_tok", "PLANTED-5678", "--ms_hub_token=PLANTED-90"])
    assert files_with_secrets(tmp_path / "run") == []
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8"))
    assert kept == {"command_line": [*words, "--hf_hub_tok", "(hidden)"]}


def test_the_recipe_that_the_board_leaves_in_the_folder_is_cleaned(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.train.tuner import run_exp

    given = recipe(tiny_llama, data, tmp_path / "run", **SHORT, **SECRETS)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "training_args.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path)])
    run_exp()
    assert files_with_secrets(tmp_path / "run") == []
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {**given, **dict.fromkeys(SECRETS)}


def test_a_recipe_that_the_user_wrote_is_left_alone(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.train.tuner import run_exp

    path = tmp_path / "training_args.yaml"
    path.write_text(yaml.safe_dump(recipe(tiny_llama, data, tmp_path / "run", **SHORT, **SECRETS)), encoding="utf-8")
    written = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path)])
    run_exp()
    assert path.read_bytes() == written
