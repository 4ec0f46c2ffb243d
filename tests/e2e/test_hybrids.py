"""`stage: contrastive` on hybrids, and on models that also read images: trained, served and exported as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.loading.weights import text_part
from tests.attention.models import SIZES
from tests.attention.test_hybrids import OVERRIDES
from tests.embedders import PROSE
from tests.tiny_models import tiny_tokenizer

from .contrastive_runs import LORA, perform, recipe, write_data
from .two_ranks import deepspeed_config, run_on_two_ranks


# Steps small enough for the loss to fall: where it rises, so do differences of rounding.
CAUSAL = {"attention": "causal", "pooling": "last", "num_negatives": 1, "learning_rate": 0.002}
TEXTS = ["the study of stars", "a young horse", "to run away", "an instrument with strings", "blue"]
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
          "num_position_embeddings": 16, "patch_size": 4}  # fmt: skip


def draw_weights(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that reads texts and images, and the language model inside it by itself."""
    folder = tmp_path_factory.mktemp("models")
    text = SIZES | OVERRIDES["qwen3_5_text"] | {"model_type": "qwen3_5_text", "max_position_embeddings": 512}
    config = AutoConfig.for_model(
        "qwen3_5", text_config=text, vision_config=VISION, tie_word_embeddings=True, image_token_id=290,
        video_token_id=291, vision_start_token_id=292, vision_end_token_id=293,
    )  # fmt: skip
    torch.manual_seed(0)
    both = AutoModelForImageTextToText.from_config(config)
    draw_weights(both)
    both.save_pretrained(folder / "both")
    alone = AutoModelForCausalLM.from_pretrained(folder / "both", config=text_part(copy.deepcopy(config)))
    alone.save_pretrained(folder / "alone")
    for name in ("both", "alone"):
        tiny_tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in ("both", "alone")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_the_text_part_keeps_tied_weights(folders: dict[str, Path]) -> None:
    text = text_part(AutoConfig.from_pretrained(folders["both"]))
    assert (text.model_type, text.tie_word_embeddings) == ("qwen3_5_text", True)
    assert text_part(text) is text


@pytest.mark.parametrize("tuning", [LORA, {"finetuning_type": "full"}], ids=["lora", "full"])
def test_a_model_that_reads_images_trains_as_its_language_model(
    tuning: dict[str, Any], folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = CAUSAL | tuning
    both, alone = (perform(recipe(folders[name], data, tmp_path / name, **options)) for name in ("both", "alone"))
    assert both.losses == pytest.approx(alone.losses, rel=1e-6)
    assert both.parameters.keys() == alone.parameters.keys()
    assert not any("visual" in name for name in both.parameters)
    assert any("linear_attn" in name for name in both.parameters)

    chunks = perform(recipe(folders["both"], data, tmp_path / "chunks", grad_cache_tokens=64, **options))
    assert chunks.losses == pytest.approx(both.losses, rel=1e-5)

    encoders = [Encoder(str(tmp_path / name)) for name in ("both", "alone")]
    vectors = [encoder.encode(TEXTS) for encoder in encoders]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    one_by_one = np.concatenate([encoders[0].encode([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors[0], one_by_one, atol=1e-5)


def test_export_is_verified_and_merging_works(
    folders: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by sentence-transformers, in padded batches too; a checkpoint merged with itself stays what it is."""
    trained, exported, merged = (str(tmp_path / name) for name in ("trained", "exported", "merged"))
    perform(recipe(folders["both"], data, trained, **CAUSAL, **LORA))
    assert main(["export", trained, exported]) == 0
    assert "Loaded again by sentence-transformers" in capsys.readouterr().out
    assert main(["merge", trained, trained, "--output", merged]) == 0
    expected = Encoder(trained).encode(TEXTS)
    for folder in (exported, merged):
        np.testing.assert_allclose(Encoder(folder).encode(TEXTS), expected, atol=1e-5)


def test_a_base_model_embeds_without_training(folders: dict[str, Path]) -> None:
    vectors = [Encoder(str(folders[name]), pooling="last", attention="causal").encode(TEXTS) for name in folders]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"attention": "bidirectional"}, {"stage": "mntp", "dataset": "nouns"}], ids=["contrastive", "mntp"]
)
def test_both_directions_are_refused(
    options: dict[str, Any], folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    asked = recipe(folders["both"], data, tmp_path / "out", **LORA) | options
    if options.get("stage") == "mntp":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "prose.jsonl").write_text('{"text": "some prose"}\n' * 8)
        (tmp_path / "data" / "dataset_info.json").write_text(
            '{"prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}}}'
        )
        asked |= {"dataset": "prose", "dataset_dir": str(tmp_path / "data")}
    with pytest.raises(ValueError, match=r"mixes tokens by recurrence .* can only be causal"):
        perform(asked)


def test_no_openvino_graph(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """A traced graph would take as many steps as its example has."""
    from llamafactory_embed.export.openvino.graph import convert_decoder

    with pytest.raises(ValueError, match=r"`--layout openvino`: Qwen3_5Text.* recurrence"):
        convert_decoder(folders["alone"])


@pytest.mark.process
def test_zero_3_trains_as_one_process(folders: dict[str, Path], tmp_path: Path) -> None:
    """Texts so unlike in length that the ranks would call their layers differently often (and wait for ever)."""
    words = " ".join(PROSE).split()
    rows = [
        {"query": " ".join(words[n : n + 4]), "positive": " ".join(words[2 * n : 2 * n + (5 if n % 3 else 90)])}
        for n in range(24)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    info = {"rows": {"file_name": "rows.jsonl", "formatting": "retrieval"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    options = CAUSAL | {"num_negatives": 0, "dataset": "rows", "cutoff_len": 256}
    settings = {"model": str(folders["both"]), "data": str(tmp_path / "data")}
    alone = perform(recipe(output_dir=tmp_path / "alone", **settings, **options))
    sharded = run_on_two_ranks(tmp_path / "z3", settings, {"z3": options | {"deepspeed": deepspeed_config("z3")}})
    assert sharded["z3"].losses == pytest.approx(alone.losses, abs=1e-4)
    vectors = [Encoder(str(tmp_path / name)).encode(TEXTS) for name in ("alone", "z3/z3")]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)
