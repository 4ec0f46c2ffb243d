"""`llamafactory-embed export`: its output, its exit codes, the card, and the hub."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError
from transformers import AutoConfig, AutoModel

from llamafactory_embed import Encoder
from llamafactory_embed.cards.header import CardHeader, Evaluation, write_card_file
from llamafactory_embed.cards.sections import DATA
from llamafactory_embed.cli import main
from llamafactory_embed.export.command import add_arguments
from llamafactory_embed.export.weights import rope_as_before, save_weights
from llamafactory_embed.hparams.source import SOURCE_SETTINGS
from llamafactory_embed.loading import hub
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.quantization import QuantizationRanges
from tests.embedders import make_config
from tests.export.checkpoints import TEXTS, Trained, train
from tests.tiny_models import tiny_model


CARD = CardHeader(
    library="llamafactory-embed",
    license="cc-by-4.0",
    languages=["en"],
    datasets=["mteb/scifact"],
    evaluations=[Evaluation("information-retrieval", "lines", {"ndcg@10": 0.8125})],
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = train(tmp_path_factory.mktemp("trained"))
    figures = {"eval_ndcg@10": 0.8125, "eval_runtime": 1.5, "epoch": 2.0}
    (trained.folder / "eval_results.json").write_text(json.dumps(figures))
    write_card_file(
        trained.folder, "trained", CARD, ["Text.", "", f"## {DATA}", "", "the data", "", "## Else", "", "gone"]
    )
    return trained


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "my-embedder"
    assert main(["export", str(trained.folder), str(target), "--query-task", "next_line"]) == 0
    return target


def test_the_layout_that_servers_read(exported: Path) -> None:
    modules = json.loads((exported / "modules.json").read_text())
    assert [each["type"] for each in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = json.loads((exported / modules[1]["path"] / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False  # text-embeddings-inference wants both keys
    lengths = json.loads((exported / "sentence_bert_config.json").read_text())
    assert lengths == {"max_seq_length": 48, "do_lower_case": False}
    settings = json.loads((exported / "config_sentence_transformers.json").read_text())
    assert settings["prompts"]["query"] == settings["prompts"]["next_line"] != settings["prompts"]["document"]
    assert settings["requirements"]["transformers"]["specifier"] == ">=5.2"  # before, it would embed causally
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaModel"]
    assert config["is_causal"] is False
    assert config["use_bidirectional_attention"] is True
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # the name before transformers 5
    assert (exported / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("family", "flag"),
    [("mistral", True), ("qwen3", True), ("qwen2", None), ("gemma3", None), ("gpt2", None)],
)
def test_the_flag_of_text_embeddings_inference(family: str, flag: bool | None, tmp_path: Path) -> None:
    trained = train(tmp_path, family)
    assert main(["export", str(trained.folder), str(tmp_path / "exported")]) == 0
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (config.get("use_bidirectional_attention") or None) is flag
    assert config["is_causal"] is False


def test_causal_models_carry_no_flag(tmp_path: Path) -> None:
    trained = train(tmp_path, attention="causal", pooling="last")
    assert main(["export", str(trained.folder), str(tmp_path / "exported")]) == 0
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config.get("is_causal", True) is True
    assert "use_bidirectional_attention" not in config


def test_scaled_rotary_embeddings_keep_their_old_names() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert rope_as_before({"rope_parameters": {"rope_theta": 5e5, **scaling}}) == {
        "rope_theta": 5e5, "rope_scaling": scaling,
    }  # fmt: skip
    layers = {"full_attention": {"rope_theta": 1e6, **scaling}, "sliding_attention": {"rope_theta": 1e4}}
    assert rope_as_before({"rope_parameters": layers}) == {
        "rope_theta": 1e6, "rope_scaling": scaling, "rope_local_base_freq": 1e4,
    }  # fmt: skip
    assert rope_as_before({"model_type": "gpt2"}) == {}


PARTIAL = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [4.0, 8.0]}


def test_the_part_of_a_head_that_is_rotated_stands_beside_the_scaling() -> None:
    default = {"model_type": "glm", "rope_parameters": {"rope_type": "default", **PARTIAL}}
    assert rope_as_before(default) == PARTIAL
    linear = {"rope_type": "linear", "factor": 2.0}
    assert rope_as_before({"model_type": "glm", "rope_parameters": PARTIAL | linear}) == {
        **PARTIAL, "rope_scaling": linear,
    }  # fmt: skip
    both = {"full_attention": {"rope_type": "default", **PARTIAL}, "sliding_attention": {"rope_theta": 5e3}}
    assert rope_as_before({"rope_parameters": both}) == {**PARTIAL, "rope_local_base_freq": 5e3}


def test_phi3_has_the_three_fields_that_its_older_code_accepts(tmp_path: Path) -> None:
    """`Phi3Config._rope_scaling_validation` of transformers 4 refuses any other number of fields, and asks for `type`.
    transformers 5 must read the same settings from both names: it lets the older one win."""
    rope = PARTIAL | LONGROPE | {"original_max_position_embeddings": 32}
    model = tiny_model(
        "phi3", rope_parameters=rope, original_max_position_embeddings=32, max_position_embeddings=128,
        num_attention_heads=4,
    )  # fmt: skip
    save_weights(EmbeddingModel(model, make_config()), tmp_path, torch.float32, "5GB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [4.0, 8.0]}
    assert {name: config[name] for name in PARTIAL} == PARTIAL
    assert config["original_max_position_embeddings"] == 32
    read_again = AutoConfig.from_pretrained(tmp_path).rope_parameters
    written = {name: read_again[name] for name in model.config.rope_parameters}
    assert written == model.config.rope_parameters
    tokens = torch.arange(40)[None] % 100
    with torch.no_grad():
        expected = model.model(tokens).last_hidden_state
        found = AutoModel.from_pretrained(tmp_path)(tokens).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_the_card(exported: Path, trained: Trained) -> None:
    _, header, body = (exported / "README.md").read_text("utf-8").split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["library_name"] == "sentence-transformers"
    assert "base_model" not in values  # a folder of this machine
    assert str(trained.folder.parent) not in body
    assert str(trained.folder.parent) not in (exported / "embedding_config.json").read_text()
    assert 'SentenceTransformer("my-embedder")' in body
    assert "vllm serve my-embedder --runner pooling" in body
    assert "text-embeddings-router --model-id my-embedder" in body
    assert "| ndcg@10 | 0.8125 |" in body
    assert "runtime" not in body
    assert "the data" in body  # a section of the checkpoint's card
    assert "gone" not in body
    header = ModelCard.load(exported / "README.md").data
    assert (header.license, header.language, header.datasets) == ("cc-by-4.0", ["en"], ["mteb/scifact"])
    assert [(each.metric_name, each.metric_value) for each in header.eval_results] == [("ndcg@10", 0.8125)]
    assert header.model_name == "my-embedder"


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"pooling": "latent"}, "`trust_remote_code=True`; vLLM, text-embeddings-inference", "vllm serve"),
        ({"pooling": "weighted_mean"}, "have no weighted mean", "vllm serve"),
        ({"pooling": "eos"}, "vllm serve", "trust_remote_code"),
    ],
)
def test_programs_that_cannot_load_the_folder_are_named(
    options: dict[str, Any], present: str, absent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(tmp_path, **options)
    assert main(["export", str(trained.folder), str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "README.md").read_text("utf-8")
    assert present in card
    assert absent not in card
    said = capsys.readouterr().out
    assert "differ by" in said
    assert "name a prompt when encoding" in said  # two tasks: `query` stands for neither


@pytest.mark.parametrize("layout", ["adapter", "llm2vec"])
def test_other_layouts(layout: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "exported"
    assert main(["export", str(trained.folder), str(target), "--layout", layout]) == 0
    assert "embeds the sample texts as the checkpoint does" in capsys.readouterr().out
    header = ModelCard.load(target / "README.md").data
    assert (header.library_name, header.license) == ("peft", "cc-by-4.0")
    header = header.to_dict()
    assert "base_model" not in header  # a folder of this machine, so there is no relation to it either
    assert "base_model_relation" not in header
    if layout == "adapter":
        np.testing.assert_allclose(Encoder(target).encode(TEXTS), trained.embed(), atol=1e-5)
    assert main(["export", str(trained.folder), str(target), "--layout", layout, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--query-task", "next_lin"], "did you mean `next_line`?"),
        (["--dimensions", "8"], "`--dimensions 8` was not trained; this model has 32."),
        (["--dry-run"], "`--dry-run` is about pushing"),
        (["--push-to", "embedder"], "must name its owner"),
        (["--push-to", "me/a b"], "cannot be a repository's name"),
        (["--layout", "adapter", "--dtype", "float16"], "`--dtype` has no effect on `--layout adapter`"),
        (["--layout", "llm2vec", "--dimensions", "8"], "`--dimensions` has no effect on `--layout llm2vec`"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_1(
    arguments: list[str], sentence: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.folder), str(tmp_path / "exported"), *arguments]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


class Hub:
    """Stands for the hub: remembers what it is sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, token: str | None = None) -> Hub:
        return self

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append((repository, options))
        return f"https://hub/{repository}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append((options.pop("repo_id"), options))


def test_a_dry_run_lists_the_files_and_sends_none(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = Hub()
    monkeypatch.setattr(hub, "HfApi", stand_in)
    ranges = QuantizationRanges({"32": [-1.0, 1.0]}, unit_length=True)
    ranges.save(trained.folder)
    target = tmp_path / "exported"
    words = ["export", str(trained.folder), str(target), "--push-to", "me/embedder", "--private"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "me/embedder (private)" in said
    for path in target.rglob("*"):
        assert path.is_dir() or path.relative_to(target).as_posix() in said
    assert stand_in.calls == []
    assert QuantizationRanges.load(target) == ranges

    assert main([*words, "--overwrite"]) == 0
    (repository, creation), (again, upload) = stand_in.calls
    assert repository == again == "me/embedder"
    assert creation["private"] is True
    assert Path(upload["folder_path"]) == target


# The library through which this huggingface_hub talks to the network.
HTTP_LIBRARY = importlib.import_module(HTTPError.__module__.partition(".")[0])


@pytest.mark.parametrize("error", [ConnectionError("no route"), HTTP_LIBRARY.ConnectError("no route")])
def test_a_push_that_fails_keeps_the_export(
    error: Exception,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Unreachable(Hub):
        def create_repo(self, repository: str, **options: Any) -> str:
            raise error

    monkeypatch.setattr(hub, "HfApi", Unreachable())
    target = tmp_path / "exported"
    assert main(["export", str(trained.folder), str(target), "--push-to", "me/embedder"]) == 1
    assert f"{target} is complete, but could not be pushed" in capsys.readouterr().err
    assert (target / "modules.json").is_file()


def test_the_page_explains_every_option_once_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    declared = {
        action.option_strings[0]: "" if action.default in (None, False) else f"`{action.default}`"
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", *SOURCE_SETTINGS)  # docs/checkpoints.md has these
    }
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    explained = re.findall(r"^\| `(--[\w-]+)` \|\s*([^|]*?)\s*\| .", page, flags=re.MULTILINE)
    assert sorted(explained) == sorted(declared.items())
