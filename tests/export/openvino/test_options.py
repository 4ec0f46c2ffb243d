"""What an OpenVINO export refuses, measures and writes on its card; none of it needs OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from llamafactory_embed.cli import main
from llamafactory_embed.encoder.encoder import Encoder
from llamafactory_embed.export.openvino import check, export, graph
from llamafactory_embed.export.openvino.check import TaskScore, ThroughGraph, check_cosines, lowest_cosine
from llamafactory_embed.export.openvino.export import ExportedGraph, describe_graph, find_check_tasks, graph_dtype
from llamafactory_embed.export.openvino.graph import OUTPUT, traceable_mask
from llamafactory_embed.export.options import ExportOptions
from llamafactory_embed.export.serving import plan_serving
from llamafactory_embed.export.verify import Case, Expected
from llamafactory_embed.loading.weights import find_weight_files
from tests.embedders import INSTRUCTION, PROSE, make_config, make_embedder
from tests.export.checkpoints import TASKS, Trained, train
from tests.tiny_models import tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("trained"))


# ------------------------------ refusals ------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layout", "openvino", "--dtype", "float16"], "an OpenVINO graph is exported in float32 or int8"),
        (["--layout", "openvino", "--server", "http://x"], "`--server` has no effect on `--layout openvino`"),
        (
            ["--layout", "openvino", "--max-shard-size", "1GB"],
            "`--max-shard-size` has no effect on `--layout openvino`",
        ),
        (["--dtype", "int8"], "`--dtype int8` is for `--layout openvino`"),
        (["--check-tasks", "a.jsonl"], "`--check-tasks` has no effect on `--layout sentence-transformers`"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], sentence: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.folder), str(tmp_path / "exported"), *arguments]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_a_sentence_names_the_extra(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "PACKAGES", ("torch", "no_such_package.part"))
    assert main(["export", str(trained.folder), str(tmp_path / "exported"), "--layout", "openvino"]) == 1
    assert "pip install 'llamafactory-embed[eval,openvino]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_who_opens_a_graph_as_a_checkpoint_hears_how_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    with pytest.raises(ValueError, match=r'holds an OpenVINO graph .* backend="openvino"'):
        find_weight_files(tmp_path)


def test_a_pooling_of_all_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives those of the last one only"):
        graph_dtype(ExportOptions(), make_config(pooling="multi_layer_latent"))
    assert graph_dtype(ExportOptions(), make_config()) == "float32"


def test_check_tasks_must_be_tasks_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(names: list[str], dataset_dir: str, option: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, is_retrieval=name == "search") for name in names]

    monkeypatch.setattr(export, "choose_tasks", choose)
    with pytest.raises(ValueError, match=r"^`--check-tasks`: scored has no nDCG@10"):
        find_check_tasks(ExportOptions(check_tasks=["search", "scored"]))
    assert len(find_check_tasks(ExportOptions(check_tasks=["search"]))) == 1
    assert find_check_tasks(ExportOptions()) == []


# ------------------------------ the mask that conversion can follow ------------------------------


def two_sided(window: int) -> Any:
    return lambda batch, head, query, key: (query - key).abs() <= window


@pytest.mark.parametrize(
    "rule",
    [causal_mask_function, bidirectional_mask_function, sliding_window_causal_mask_function(3), two_sided(2)],
    ids=["causal", "bidirectional", "window", "two-sided window"],
)
def test_the_mask_is_that_of_transformers(rule: Any) -> None:
    padding = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    ours = traceable_mask(2, 6, 6, mask_function=rule, attention_mask=padding)
    theirs = sdpa_mask(
        batch_size=2,
        q_length=6,
        kv_length=6,
        mask_function=and_masks(rule),
        attention_mask=padding.bool(),
        allow_is_causal_skip=False,
        allow_torch_fix=False,
    )
    assert torch.equal(ours == 0, theirs.expand_as(ours))
    assert torch.isfinite(ours).all()  # a row of padding must not become NaN


# ------------------------------ what is measured ------------------------------


@pytest.mark.parametrize(("pooling", "skip_instruction"), [("mean", True), ("last", False), ("latent", False)])
def test_a_graph_in_the_place_of_the_transformer_changes_nothing(pooling: str, skip_instruction: bool) -> None:
    model = make_embedder(pooling=pooling, skip_instruction=skip_instruction, attention="bidirectional").eval()
    given: list[tuple[int, ...]] = []

    def padded(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        given.append(tuple(tensors["input_ids"].shape))
        with torch.no_grad():
            return {OUTPUT: model.decoder(**tensors, use_cache=False).last_hidden_state.numpy()}

    expected = Encoder(model, tiny_tokenizer()).encode(PROSE, prompt=INSTRUCTION)
    seen = Encoder(ThroughGraph(model, padded), tiny_tokenizer()).encode(PROSE, prompt=INSTRUCTION)  # type: ignore[arg-type]
    assert max(rows for rows, _ in given) > 1
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_the_lowest_cosine_is_that_of_the_worst_row() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert lowest_cosine(np.array([[3.0, 0.0], [1.0, 1.0]]), expected) == pytest.approx(0.5**0.5)
    assert lowest_cosine(np.array([[3.0, 0.0]]), expected) == float("-inf")


@pytest.mark.parametrize(
    ("dtype", "angle", "passes"), [("float32", 0.06, False), ("int8", 0.06, True), ("int8", 0.15, False)]
)
def test_a_graph_below_its_limit_is_refused(
    dtype: str, angle: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.array([[1.0, 0.0]])
    expected = Expected(Case("query", None, "query", ("a",)), [], 1, vectors, vectors)
    turned = np.array([[np.cos(angle), np.sin(angle)]])

    def embed(loaded: Any, cases: Any, serving: Any) -> Iterator[Any]:
        yield from ((each, turned, True) for each in cases)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda folder, **options: options["backend"])
    monkeypatch.setattr(check, "embed_as_users_do", embed)
    serving = plan_serving(make_config(), 32)
    if passes:
        assert check_cosines(tmp_path, [expected], serving, dtype) == pytest.approx(np.cos(angle))
    else:
        with pytest.raises(ValueError, match=rf"cosine of {np.cos(angle):.4f} .*; nothing was written\.$"):
            check_cosines(tmp_path, [expected], serving, dtype)


def test_the_card_says_what_the_conversion_has_kept() -> None:
    config = make_config(**TASKS, pooling="latent")
    exported = ExportedGraph(Path("my/graph"), "int8", 1.5, 0.9987654, [TaskScore("nouns", 0.41236, 0.41111)])
    lines = describe_graph(exported, config, tiny_config("llama"), plan_serving(config, 32))
    assert 'model = SentenceTransformer("graph", backend="openvino", trust_remote_code=True)' in lines
    assert "| nouns | 0.4124 | 0.4111 |" in lines
    assert any("a cosine of at least 0.998765 " in line for line in lines)
    without = describe_graph(
        ExportedGraph(Path("g"), "int8", 1.5, 1.0, []), config, tiny_config("llama"), plan_serving(config, 32)
    )
    assert not any("nDCG" in line for line in without)


def test_only_the_language_models_weights_are_removed(tmp_path: Path) -> None:
    names = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    kept = ["pooler.safetensors", "modules.json"]
    for name in names + kept:
        (tmp_path / name).touch()
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    export.remove_torch_weights(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2_Dense", "modules.json", "pooler.safetensors"]
    assert (tmp_path / "2_Dense" / "model.safetensors").exists()
