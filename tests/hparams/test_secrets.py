"""What counts as a secret, and what is left of a recipe without it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.hparams.secrets import (
    HIDDEN,
    arguments_without_secrets,
    is_secret_name,
    secrets_of,
    without_secrets,
    words_without_secrets,
)


SECRET = "s3cr3t-and-long-enough"
SECRET_NAMES = [
    "hub_token", "hf_hub_token", "ms_hub_token", "om_hub_token", "push_to_hub_token", "token", "HF_TOKEN",
    "swanlab_api_key", "WANDB_API_KEY", "apikey", "swanlab_lark_secret", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "_redis_password", "passwd", "train.swanlab_api_key", "azure_account_key", "credentials", "Authorization",
]  # fmt: skip
OTHER_NAMES = [
    "mask_token", "pad_token", "tokenized_path", "max_new_tokens", "skip_special_tokens", "new_special_tokens_config",
    "ignore_pad_token_for_loss", "max_tokens_per_batch", "loss_norm", "dataset", "key", "output_dir",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert without_secrets({name: SECRET}) == {name: None}
    assert words_without_secrets(["a.yaml", f"{name}={SECRET}", "b=1"]) == ["a.yaml", "b=1"]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_keep_their_values(name: str) -> None:
    assert not is_secret_name(name)
    assert without_secrets({name: "value"}) == {name: "value"}
    assert words_without_secrets([f"--{name}", "value", f"{name}=value"]) == [f"--{name}", "value", f"{name}=value"]


def test_every_token_of_the_host_counts_as_a_secret() -> None:
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, parser

    classes = (ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments, parser.TrainingArguments)
    names = {field.name for each in classes for field in dataclasses.fields(each)}
    assert {name for name in names if is_secret_name(name)} == {
        "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "swanlab_api_key", "swanlab_lark_secret",
    }  # fmt: skip


NESTED: list[tuple[Any, Any]] = [
    (
        {"ray_init_kwargs": {"runtime_env": {"env_vars": {"HF_TOKEN": SECRET, "HOME": "/root"}}, "num_cpus": 2}},
        {"ray_init_kwargs": {"runtime_env": {"env_vars": {"HF_TOKEN": None, "HOME": "/root"}}, "num_cpus": 2}},
    ),
    (
        {"ray_init_kwargs": json.dumps({"_redis_password": SECRET, "num_cpus": 2})},
        {"ray_init_kwargs": json.dumps({"_redis_password": None, "num_cpus": 2})},
    ),
    ({"model_name_or_path": f"https://me:{SECRET}@hub.org/model"}, {"model_name_or_path": "https://hub.org/model"}),
    ({"a": [{"password": SECRET}, f"WANDB_API_KEY={SECRET}"]}, {"a": [{"password": None}, f"WANDB_API_KEY={HIDDEN}"]}),
    ({"path": f"s3://bucket/x?token={SECRET}&part=1"}, {"path": f"s3://bucket/x?token={HIDDEN}&part=1"}),
    ({"run_name": "run of hf_abcdefghijklmnopqrstuvwxyz"}, {"run_name": f"run of {HIDDEN}"}),
    ({"hub_token": None, "use_secret_sauce": True}, {"hub_token": None, "use_secret_sauce": True}),
    ({"query_template": '{instruction} "{text}"'}, {"query_template": '{instruction} "{text}"'}),
    ({"ray_init_kwargs": '{"num_cpus":2}'}, {"ray_init_kwargs": '{"num_cpus":2}'}),
]


@pytest.mark.parametrize(("recipe", "expected"), NESTED)
def test_secrets_inside_of_values(recipe: Any, expected: Any) -> None:
    assert without_secrets(recipe) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hub_token", SECRET, "--stage", "ddm"], ["--stage", "ddm"]),
        (["--hub_token", "--stage", "ddm"], ["--stage", "ddm"]),
        (["--hf_hub_token=x", "--stage", "ddm"], ["--stage", "ddm"]),
        (["recipe.yaml", "hf_hub_token=x", "stage=ddm"], ["recipe.yaml", "stage=ddm"]),
        (["--hub-token", SECRET], []),
        (["--mask_token", "mask"], ["--mask_token", "mask"]),
    ],
)
def test_words_of_a_command_line(words: list[str], expected: list[str]) -> None:
    assert words_without_secrets(words) == expected


def test_a_known_secret_is_hidden_under_any_name() -> None:
    """argparse takes `--hf_hub_tok` for `--hf_hub_token`; the parsed arguments tell the value."""
    secrets = secrets_of(SimpleNamespace(hf_hub_token=SECRET, ray_init_kwargs={"env": {"api_key": "another-secret"}}))
    assert words_without_secrets(["--hf_hub_tok", SECRET], secrets) == ["--hf_hub_tok", HIDDEN]
    assert without_secrets({"run_name": "by another-secret"}, secrets) == {"run_name": f"by {HIDDEN}"}


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "ddm")
    monkeypatch.setenv("CREDENTIALS_FOLDER_SECRET", "/models/tiny")
    recipe = {"run_name": f"run-{SECRET}", "stage": "ddm", "model_name_or_path": "/models/tiny"}
    assert without_secrets(recipe, secrets_of()) == {**recipe, "run_name": f"run-{HIDDEN}"}


def test_an_argument_object_stays_as_it_is() -> None:
    arguments = SimpleNamespace(hub_token=SECRET, output_dir="out", ray_init_kwargs={"a": {"password": SECRET}}, n=1)
    shown = arguments_without_secrets(arguments)
    assert vars(shown) == {
        "hub_token": None,
        "output_dir": "out",
        "ray_init_kwargs": {"a": {"password": None}},
        "n": 1,
    }
    assert arguments.hub_token == arguments.ray_init_kwargs["a"]["password"] == SECRET
