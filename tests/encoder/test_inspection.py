"""`llamafactory-embed inspect`: what it says is so, and it loads no weights to say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.encoder.inspection import format_bytes
from llamafactory_embed.loading.checkpoint import save_checkpoint
from tests.embedders import INSTRUCTION, make_embedder
from tests.loading.published import MNTP, SUPERVISED, copy_llm2vec, save_wrapped
from tests.tiny_models import save_tiny_model, tiny_tokenizer


Inspect = Callable[..., Any]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Run the command in a process that cannot load a model."""

    def run(*words: object) -> Any:
        def load(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a model was loaded")

        capsys.readouterr()  # what was said while the checkpoint was made
        with monkeypatch.context() as patched:
            patched.setattr(PreTrainedModel, "from_pretrained", load)
            assert main(["inspect", *map(str, words)]) == 0
        shown = capsys.readouterr().out
        return json.loads(shown) if "--json" in words else shown

    return run


def test_a_chain_of_adapters(inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_llm2vec(tmp_path)
    (tmp_path / SUPERVISED / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# An adapter\n")
    monkeypatch.chdir(tmp_path)
    found = inspect(SUPERVISED, "--json")
    assert (found["kind"], found["model"], found["adapters"]) == ("LLM2Vec", "base", [MNTP, SUPERVISED])
    encoder = Encoder(SUPERVISED, device="cpu")
    assert found["embeds"]["dimension"] == encoder.dimension
    for name in ("pooling", "attention", "query_template", "document_max_length", "skip_instruction", "normalize"):
        assert found["embeds"][name] == getattr(encoder.config, name)
    merged = sum(each.numel() for each in encoder.model.decoder.parameters())
    # 2 layers, rank 2, three matrices each: [32, 32], [32 -> 16] and [48 -> 32]
    assert found["parameters"] == merged + 2 * (2 * 2 * (64 + 48 + 80))
    files = [tmp_path / "base" / "model.safetensors"]
    files += [tmp_path / name / "adapter_model.safetensors" for name in (MNTP, SUPERVISED)]
    assert found["size"] == sum(file.stat().st_size for file in files)
    assert (found["licence"], found["dtypes"]) == ("mit", ["float32"])
    table = inspect(SUPERVISED)
    assert f"{MNTP} → {SUPERVISED}" in table
    assert "good for" in table


def test_our_checkpoint_with_its_tasks_and_sizes(inspect: Inspect, tmp_path: Path) -> None:
    model = make_embedder(matryoshka_dims=[8, 16], instructions={"next_line": INSTRUCTION})
    save_checkpoint(model, tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = inspect(tmp_path, "--json")
    assert found["embeds"]["matryoshka_dims"] == [8, 16]
    assert found["embeds"]["instructions"] == {"next_line": INSTRUCTION}
    assert INSTRUCTION in inspect(tmp_path)
    assert "licence" in inspect(tmp_path)


def test_what_a_language_model_asks_for(inspect: Inspect, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    found = inspect(tmp_path, "--json")
    assert found["embeds"] is None
    assert "name `pooling` and `attention`" in found["asks"]
    named = inspect(tmp_path, "--pooling", "last", "--attention", "causal", "--json")
    assert named["asks"] is None
    assert named["embeds"]["pooling"] == "last"
    assert any("export" in use for use in named["uses"])
    assert not any("sample" in use for use in named["uses"])


def test_a_diffusion_model_can_be_sampled(inspect: Inspect, tmp_path: Path) -> None:
    assert "sample, chat (stage: ddm)" in inspect(save_wrapped(tmp_path / "a"), "--json")["uses"]
    assert "sample, chat (stage: ddm)" in inspect(save_tiny_model(tmp_path / "b", "dream"), "--json")["uses"]


def test_a_damaged_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_tiny_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is cut off or damaged" in capsys.readouterr().err


def test_sizes() -> None:
    assert [format_bytes(size) for size in (999, 1500, 2_000_000, 3.2e12, 4e15)] == [
        "999 bytes", "1.5 kB", "2.0 MB", "3.2 TB", "4000.0 TB",
    ]  # fmt: skip
