"""Merged checkpoints compute what the mean of their weights computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llamafactory_embed import Encoder
from llamafactory_embed.loading.checkpoint import load_embedding_model
from llamafactory_embed.merging.merge import merge_checkpoints
from llamafactory_embed.merging.plan import Merge, last_checkpoints
from llamafactory_embed.merging.records import merge_records
from llamafactory_embed.merging.search import search_weights
from llamafactory_embed.merging.tensors import slerp
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.quantization import QuantizationRanges
from tests.embedders import PROSE
from tests.merging.checkpoints import save_adapter, save_embedder
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "llama")


def mean_model(folders: list[Path], weights: list[float]) -> EmbeddingModel:
    """The mean of the weights as they are served."""
    models = [load_embedding_model(folder) for folder in folders]
    for modules in zip(*[(model.decoder, model.pooler) for model in models], strict=True):
        states = [module.state_dict() for module in modules]
        mean = {
            name: sum(weight * state[name] for weight, state in zip(weights, states, strict=True))
            for name in states[0]
        }
        modules[0].load_state_dict(mean)
    return models[0]


def embed(source: Path | EmbeddingModel) -> np.ndarray:
    encoder = Encoder(source, tiny_tokenizer()) if isinstance(source, EmbeddingModel) else Encoder(source)
    return encoder.encode(PROSE[:6])


@pytest.mark.parametrize("full", [False, True])
def test_adapters_of_several_ranks_and_scales(base: Path, tmp_path: Path, full: bool) -> None:
    """Ranks and scales that differ by adapter and by module, and a pooler with weights."""
    parts = [
        save_adapter(tmp_path / "a", base, 1, "latent"),
        save_adapter(tmp_path / "b", base, 2, "latent", r=2, lora_alpha=6, use_rslora=True),
        save_adapter(tmp_path / "c", base, 3, "latent", rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 5}),
    ]
    merge_checkpoints(Merge.of(parts, [3, 2, 5], full=full), tmp_path / "merged")

    expected = embed(mean_model(parts, [0.3, 0.2, 0.5]))
    np.testing.assert_allclose(embed(tmp_path / "merged"), expected, atol=2e-6)
    assert not np.allclose(embed(parts[0]), expected, atol=1e-3)
    assert (tmp_path / "merged" / "adapter_config.json").exists() is not full
    tasks = Encoder(tmp_path / "merged").config.instructions
    assert tasks.keys() == {"shared", "task_1", "task_2", "task_3"}
    page = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "0.3000" in page
    assert str(tmp_path.parent) not in page


def test_full_weights(tmp_path: Path) -> None:
    parts = [save_embedder(tmp_path / str(seed), tiny_model("llama", seed), seed) for seed in (1, 2)]
    merge_checkpoints(Merge.of(parts, [1, 3]), tmp_path / "merged")
    np.testing.assert_allclose(embed(tmp_path / "merged"), embed(mean_model(parts, [0.25, 0.75])), atol=1e-6)


def test_ranges_are_the_widest_of_all_parts(tmp_path: Path) -> None:
    parts = [save_embedder(tmp_path / str(seed), tiny_model("llama", seed), seed) for seed in (1, 2)]
    merge = Merge.of(parts, None)
    QuantizationRanges({"32": [[-0.1] * 32, [0.1, 0.4] * 16]}, unit_length=True, texts=10).save(parts[0])
    assert not [each for each in merge_records(merge) if isinstance(each, QuantizationRanges)]  # the other has none
    QuantizationRanges({"32": [-0.2, 0.25]}, unit_length=True, texts=5).save(parts[1])
    (found,) = [each for each in merge_records(merge) if isinstance(each, QuantizationRanges)]
    assert found.texts == 15
    np.testing.assert_allclose(found.of(32, unit_length=True), [[-0.2] * 32, [0.25, 0.4] * 16], atol=1e-7)
    QuantizationRanges({"32": [-0.2, 0.25]}, unit_length=False, texts=5).save(parts[1])
    assert not [each for each in merge_records(merge) if isinstance(each, QuantizationRanges)]


def test_an_adapter_and_full_weights(base: Path, tmp_path: Path) -> None:
    parts = [save_adapter(tmp_path / "adapter", base, 1), save_embedder(tmp_path / "full", tiny_model("llama", 5), 5)]
    merge_checkpoints(Merge.of(parts, None), tmp_path / "merged")
    np.testing.assert_allclose(embed(tmp_path / "merged"), embed(mean_model(parts, [0.5, 0.5])), atol=2e-6)


@pytest.mark.parametrize(("t", "part"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_checkpoints(tmp_path: Path, t: float, part: int) -> None:
    parts = [save_embedder(tmp_path / str(seed), tiny_model("llama", seed), seed) for seed in (1, 2)]
    merge_checkpoints(Merge.of(parts, [1 - t, t], "slerp"), tmp_path / "merged")
    np.testing.assert_allclose(embed(tmp_path / "merged"), embed(parts[part]), atol=1e-6)


def test_slerp_follows_the_arc() -> None:
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    middle = slerp(start, end, 1 / 3)
    assert middle.norm() == pytest.approx(2 + 2 / 3)
    assert math.degrees(math.atan2(middle[1], middle[0])) == pytest.approx(30)
    torch.testing.assert_close(slerp(start, 3 * start, 0.5), 2 * start)
    torch.testing.assert_close(slerp(start, torch.zeros(2), 0.5), start / 2)


def test_weights_keep_their_type(tmp_path: Path) -> None:
    parts = [save_embedder(tmp_path / str(seed), tiny_model("llama", seed).bfloat16(), seed) for seed in (1, 2)]
    merge_checkpoints(Merge.of(parts, None), tmp_path / "merged")
    saved, *originals = [load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", *parts)]
    for name, tensor in saved.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, sum(each[name].float() / 2 for each in originals).bfloat16())


def test_the_last_checkpoints_of_a_run(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert [folder.name for folder in last_checkpoints(tmp_path, 2)] == ["checkpoint-10", "checkpoint-100"]
    with pytest.raises(ValueError, match=r"`--last 4` needs 4 folders"):
        last_checkpoints(tmp_path, 4)


def test_searched_weights_are_the_best_that_were_tried(base: Path, tmp_path: Path) -> None:
    """The judge likes embeddings like those of a certain mean."""
    parts = [save_adapter(tmp_path / name, base, seed) for seed, name in enumerate("abc")]
    wanted = embed(mean_model(parts[:2], [0.625, 0.375]))

    def judge(checkpoint: Path) -> float:
        return -float(np.square(embed(checkpoint) - wanted).sum())

    lines: list[str] = []
    weights, score = search_weights(parts[:2], "linear", False, judge, lines.append)
    assert weights == [0.625, 0.375]
    assert score == pytest.approx(0, abs=1e-9)
    assert len(lines) == 7

    soup, score = search_weights(parts, "linear", False, judge, lines.append)
    assert soup == [0.5, 0.5, 0.0]
    assert score >= max(judge(part) for part in parts)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "embedding_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"pooling": "last"}, "`pooling` is 'mean' in .* and 'last' in"),
        ({"base_model": "somewhere/else"}, "`base_model` is .* and 'somewhere/else' in"),
        ({"instructions": {"shared": "Other"}}, "The task `shared` has another instruction in"),
    ],
)
def test_checkpoints_that_are_used_differently(
    base: Path, tmp_path: Path, other: dict[str, Any], sentence: str
) -> None:
    parts = [save_adapter(tmp_path / name, base, 1) for name in "ab"]
    edit_config(parts[1], **other)
    with pytest.raises(ValueError, match=sentence):
        merge_checkpoints(Merge.of(parts, None), tmp_path / "merged")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def test_weights_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    dora = save_adapter(tmp_path / "dora", base, 1, use_dora=True)
    fewer = save_adapter(tmp_path / "fewer", base, 1, target_modules=["q_proj"])
    small = save_embedder(tmp_path / "small", tiny_model("llama"), 1)
    wide = save_embedder(tmp_path / "wide", tiny_model("qwen2"), 1)
    merged = tmp_path / "merged"
    with pytest.raises(ValueError, match=r"dora holds an adapter of DoRA, whose mean is no adapter"):
        merge_checkpoints(Merge.of([adapter, dora], None), merged)
    with pytest.raises(ValueError, match=r"are not on the same modules: only one of them has"):
        merge_checkpoints(Merge.of([adapter, fewer], None), merged)
    with pytest.raises(ValueError, match="merge checkpoints of one architecture"):
        merge_checkpoints(Merge.of([small, wide], None), merged)
    with pytest.raises(ValueError, match=r"gone is no folder"):
        merge_checkpoints(Merge.of([tmp_path / "gone", adapter], None), merged)
    merge_checkpoints(Merge.of([adapter, dora, fewer], None, full=True), merged)
    np.testing.assert_allclose(embed(merged), embed(mean_model([adapter, dora, fewer], [1 / 3] * 3)), atol=2e-6)
