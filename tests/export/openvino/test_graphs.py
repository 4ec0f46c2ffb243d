"""Real OpenVINO graphs, loaded by sentence-transformers; skipped where the extra `openvino` is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llamafactory_embed.cli import main
from llamafactory_embed.export.openvino import export
from llamafactory_embed.export.openvino.export import export_openvino
from llamafactory_embed.export.openvino.graph import GRAPH
from llamafactory_embed.export.options import ExportOptions
from tests.embedders import INSTRUCTION
from tests.export.checkpoints import TEXTS, Trained, train


for package in ("openvino", "nncf", "optimum.intel"):
    pytest.importorskip(package, reason=f"{package} of the extra `openvino` is not installed")

LINES = ["the red house", "the red horse ran away", "the"]


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(
        str(folder), device="cpu", backend="openvino", trust_remote_code=True, local_files_only=True
    )


def assert_same(folder: Path, trained: Trained, atol: float) -> None:
    loaded = load(folder)
    for batch_size in (1, len(TEXTS)):
        queries = loaded.encode_query(TEXTS, prompt_name="next_line", batch_size=batch_size)
        np.testing.assert_allclose(queries, trained.embed(instruction=INSTRUCTION, as_query=True), atol=atol)
        np.testing.assert_allclose(loaded.encode_document(TEXTS, batch_size=batch_size), trained.embed(), atol=atol)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention": "causal"}),
        ("mistral", {"attention": "bidirectional", "pooling": "weighted_mean"}),  # a window on both sides
        ("gemma3", {"attention": "causal", "pooling": "last"}),  # two kinds of layers
        ("gpt2", {"attention": "bidirectional", "pooling": "latent"}),
        ("qwen3", {"attention": "bidirectional", "skip_instruction": True}),
        ("dream", {}),
    ],
)
def test_families_and_poolings(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    trained = train(tmp_path, family, **options)
    exported = export_openvino(trained.folder, tmp_path / "exported")
    assert exported.lowest_cosine > 0.99999
    assert_same(tmp_path / "exported", trained, atol=2e-4)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_first_token_sees_later_ones_only_if_it_was_trained_to(attention: str, tmp_path: Path) -> None:
    trained = train(tmp_path, pooling="bos", attention=attention)
    export_openvino(trained.folder, tmp_path / "exported")
    vectors = load(tmp_path / "exported").encode(LINES)
    moved = np.abs(vectors - vectors[0]).max(axis=1)[1:]
    assert (moved > 0.01).all() if attention == "bidirectional" else (moved < 1e-5).all()


def test_int8_is_smaller_and_the_card_has_tasks_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"query": a, "positive": b}) + "\n" for a, b in zip(LINES, TEXTS, strict=False))
    )
    whole, small = tmp_path / "whole", tmp_path / "small"
    export_openvino(trained.folder, whole)
    words = ["export", str(trained.folder), str(small), "--layout", "openvino", "--dtype", "int8"]
    assert main([*words, "--check-tasks", str(rows)]) == 0
    assert "nDCG@10 of rows" in capsys.readouterr().out
    assert "| nDCG@10 | checkpoint | this graph |\n|---|---|---|\n| rows | " in (small / "README.md").read_text(
        "utf-8"
    )
    sizes = [(folder / GRAPH).with_suffix(".bin").stat().st_size for folder in (whole, small)]
    assert sizes[1] < 0.4 * sizes[0]
    assert not list(small.glob("*.safetensors"))
    assert_same(small, trained, atol=0.1)
    assert main([*words, "--overwrite"]) == 0


def test_a_graph_that_attends_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(tmp_path, attention="bidirectional")
    write_layout = export.write_layout

    def write_causal(model: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        write_layout(model, tokenizer, folder, *rest)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"is_causal": True}), "utf-8")

    monkeypatch.setattr(export, "write_layout", write_causal)
    with pytest.raises(ValueError, match=r"graph in float32 is not the same model: .*; nothing was written\.$"):
        export_openvino(trained.folder, tmp_path / "exported", ExportOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "checkpoint"]
