"""`Encoder`: what is trained is what is served, in order, for every pooling and both kinds of checkpoint."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from llamafactory_embed import Encoder
from llamafactory_embed.encoder import pool as encoder_pool
from llamafactory_embed.loading import hub
from llamafactory_embed.loading.checkpoint import load_checkpoint_weights, save_checkpoint
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import pack_texts
from llamafactory_embed.model.quantization import RANGES_NAME, quantize
from tests.embedders import INSTRUCTION, PROSE, make_embedder, make_tokenizer
from tests.patience import comes_true
from tests.tiny_models import save_tiny_model, tiny_tokenizer


OPTIONS = {"instructions": {"next_line": INSTRUCTION, "same": "Find alike"}, "symmetric_tasks": ["same"]}


def embed_as_training_does(model: EmbeddingModel, texts: list[str], instruction: str = "") -> np.ndarray:
    tokenizer = make_tokenizer(model)
    tokenized = tokenizer.queries(texts, instruction) if instruction else tokenizer.documents(texts)
    with torch.no_grad():
        packed = pack_texts([each.token_ids for each in tokenized], 100, [each.pooled_from for each in tokenized])
        return torch.nn.functional.normalize(model(packed), dim=1).numpy()


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "eos", "bos", "latent", "multi_layer_latent"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_saved_model_serves_what_training_computed(
    pooling: str, attention: str, adapter: bool, tmp_path: Path
) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = make_embedder(
        lora_dropout=0.1 if adapter else None, pooling=pooling, attention=attention, skip_instruction=True,
        base_model=str(base), **OPTIONS,
    ).eval()  # fmt: skip
    save_checkpoint(model, tmp_path / "checkpoint")
    tiny_tokenizer().save_pretrained(tmp_path / "checkpoint")

    encoder = Encoder(tmp_path / "checkpoint")
    assert getattr(encoder.model.decoder.config, "is_causal", True) is (attention == "causal")
    np.testing.assert_allclose(encoder.encode(PROSE), embed_as_training_does(model, PROSE), atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode(PROSE, task="next_line"), embed_as_training_does(model, PROSE, INSTRUCTION), atol=1e-5
    )


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_weights_of_a_checkpoint_come_back(adapter: bool, tmp_path: Path) -> None:
    dropout = 0.0 if adapter else None
    model = make_embedder(lora_dropout=dropout, pooling="latent").eval()
    save_checkpoint(model, tmp_path)
    other = make_embedder(lora_dropout=dropout, pooling="latent", seed=0 if adapter else 1).eval()
    assert not np.allclose(embed_as_training_does(other, PROSE), embed_as_training_does(model, PROSE), atol=1e-3)
    load_checkpoint_weights(other, tmp_path)
    np.testing.assert_allclose(embed_as_training_does(other, PROSE), embed_as_training_does(model, PROSE), atol=1e-6)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_embedder(matryoshka_dims=[8, 16], max_tokens_per_batch=64, **OPTIONS), tiny_tokenizer())


def test_order_and_batching_do_not_matter(encoder: Encoder) -> None:
    texts = [line[:size] for line in PROSE for size in (5, 90, 30)]
    together = encoder.encode(texts)
    np.testing.assert_allclose(together, np.stack([encoder.encode(text) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1]), together[::-1], atol=1e-5)
    assert together.shape == (len(texts), encoder.dimension)


def test_roles_and_prompts(encoder: Encoder) -> None:
    text = PROSE[0]
    assert np.allclose(encoder.encode(text, task="next_line"), encoder.encode(text, prompt=INSTRUCTION), atol=1e-6)
    assert np.allclose(encoder.encode(text, task="next_line", role="document"), encoder.encode(text), atol=1e-6)
    assert not np.allclose(encoder.encode(text, task="next_line"), encoder.encode(text), atol=1e-3)
    assert not np.allclose(encoder.encode(text, task="same", role="document"), encoder.encode(text), atol=1e-3)


def test_matryoshka_dimensions_are_cut_and_normalized(encoder: Encoder) -> None:
    whole = encoder.encode(PROSE, normalize=False)
    cut = encoder.encode(PROSE, dimensions=8)
    np.testing.assert_allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match=r"`dimensions: 9` was not trained; this model has 8, 16, 32"):
        encoder.encode(PROSE, dimensions=9)


def test_precisions_are_those_of_the_vectors_that_would_be_stored(tmp_path: Path) -> None:
    encoder = Encoder(make_embedder(matryoshka_dims=[8, 16], **OPTIONS), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"`precision: int8` needs the ranges .*a model in memory holds no"):
        encoder.encode(PROSE, precision="int8")
    ranges = encoder.calibrate(PROSE)
    for precision in ("float16", "int8", "binary"):
        how = {"precision": precision, "dimensions": 16}
        expected = quantize(encoder.encode(PROSE, dimensions=16), precision, ranges.of(16, unit_length=True))
        np.testing.assert_array_equal(encoder.encode(PROSE, **how), expected)
        np.testing.assert_array_equal(encoder.encode(PROSE, output_file=tmp_path / "v.npy", **how), expected)
        assert torch.equal(encoder.encode(PROSE, convert_to="torch", **how), torch.from_numpy(expected))
        np.testing.assert_array_equal(encoder.encode(PROSE[0], **how), expected[0])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_similarity_of_vectors_of_any_precision(similarity: str) -> None:
    model = make_embedder(similarity=similarity, normalize_embeddings=similarity == "cosine", **OPTIONS)
    encoder = Encoder(model, tiny_tokenizer())
    ranges = encoder.calibrate(PROSE)
    queries, documents = encoder.encode_queries(PROSE), encoder.encode_documents(PROSE)
    np.testing.assert_array_equal(documents, encoder.encode(PROSE))
    np.testing.assert_array_equal(queries, encoder.encode(PROSE, role="query"))
    exact = encoder.similarity(queries, torch.from_numpy(documents))
    np.testing.assert_allclose(exact, queries @ documents.T, rtol=1e-4, atol=1e-5)

    bits = encoder.encode_documents(PROSE, precision="binary")
    differing = ((documents > 0)[:, None] != (documents > 0)[None]).mean(2)
    np.testing.assert_allclose(encoder.similarity(bits, bits, precision="binary"), 1 - 2 * differing, atol=1e-6)
    signs = np.where(documents > 0, 1, -1) / encoder.dimension**0.5
    np.testing.assert_allclose(encoder.similarity(queries, bits, precision="binary"), queries @ signs.T, atol=1e-5)

    stored = encoder.encode_documents(PROSE, precision="int8")
    ends = ranges.of(encoder.dimension, unit_length=similarity == "cosine")
    step = (ends[1] - ends[0]) / 255
    worst = np.abs(queries) @ step  # half a step in each number; as much again for the length
    assert (np.abs(encoder.similarity(queries, stored, precision="int8") - exact) <= worst[:, None] + 1e-5).all()
    with pytest.raises(ValueError, match="got vectors of int8: say their `precision`"):
        encoder.similarity(queries, stored)


def test_a_file_is_written_whole_and_mapped(encoder: Encoder, tmp_path: Path) -> None:
    mapped = encoder.encode(PROSE, output_file=tmp_path / "vectors.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), encoder.encode(PROSE))
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]


def test_torch_output_and_no_texts(encoder: Encoder) -> None:
    assert torch.equal(encoder.encode(PROSE, convert_to="torch"), torch.from_numpy(encoder.encode(PROSE)))
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_bad_input_gets_one_sentence(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown task 'next_lin'; .*did you mean `next_line`"):
        encoder.encode("a", task="next_lin")
    with pytest.raises(ValueError, match="one for each of the 2 texts, got 3"):
        encoder.encode(["a", "b"], prompt=["x", "y", "z"])
    with pytest.raises(ValueError, match="is not a checkpoint of an embedder"):
        Encoder(tmp_path)
    with pytest.raises(ValueError, match="needs its `tokenizer`"):
        Encoder(encoder.model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "checkpoint"
    save_checkpoint(make_embedder(pooling="latent", **OPTIONS), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.process
def test_processes_encode_as_one(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number} {line[: 7 * number % 90]}" for number in range(4) for line in PROSE]
    prompts = [INSTRUCTION * (number % 2) for number in range(len(texts))]
    monkeypatch.setattr(encoder_pool, "CHUNK", 3)  # many more chunks than are sent ahead
    encoder = Encoder(checkpoint)
    two = ["cpu", "cpu"]
    try:
        found = encoder.encode(texts, prompt=prompts, devices=two)
        np.testing.assert_allclose(found, encoder.encode(texts, prompt=prompts), atol=1e-5)

        processes = encoder._pool._processes  # type: ignore[union-attr]
        monkeypatch.setattr(encoder_pool, "CHUNK", 1000)
        mapped = encoder.encode(texts, task="next_line", devices=two, output_file=tmp_path / "vectors.npy")
        assert isinstance(mapped, np.memmap)
        np.testing.assert_allclose(mapped, encoder.encode(texts, task="next_line"), atol=1e-5)
        np.testing.assert_allclose(encoder.encode("one", devices=two), encoder.encode("one"), atol=1e-5)
        assert encoder.encode([], devices=two).shape == (0, encoder.dimension)
        assert encoder._pool._processes is processes  # type: ignore[union-attr]
        assert len(processes) == 2
        assert all(process.is_alive() for process in processes)

        with pytest.raises(RuntimeError, match="A process of the Encoder failed"):
            encoder.encode(["a", 3], devices=two)  # type: ignore[list-item]
        np.testing.assert_allclose(encoder.encode(PROSE, devices=two), encoder.encode(PROSE), atol=1e-5)

        processes[0].kill()
        processes[0].join()
        np.testing.assert_allclose(encoder.encode(PROSE, devices=two), encoder.encode(PROSE), atol=1e-5)
        assert not any(process.is_alive() for process in processes)  # others have taken their place

        monkeypatch.setattr(encoder_pool, "CHUNK", 3)
        pool = encoder._pool
        assert pool is not None
        results = pool.embed(texts, "", "document")
        next(results)
        for process in pool._processes:
            process.kill()
        with pytest.raises(RuntimeError, match=r"encoder on cpu ended with code -9"):
            list(results)
        assert not pool.is_alive
    finally:
        encoder.close()


def test_a_process_that_dies_in_the_middle_of_a_result_is_named() -> None:
    """Its length has been announced, and half of it has come."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    os.write(writer.fileno(), struct.pack("!i", 1000) + b"half")
    writer.close()
    pool = object.__new__(encoder_pool.EncoderPool)
    pool._results = [reader]
    pool._processes = [SimpleNamespace(name="encoder on cpu", exitcode=-9, join=lambda timeout: None)]
    pool.close = lambda: None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="encoder on cpu ended with code -9"):
        pool._next_result()


WAITING = """
import sys, time
from llamafactory_embed import Encoder
if __name__ == "__main__":
    encoder = Encoder(sys.argv[1], device="cpu")
    encoder.encode(["a", "b"], devices=["cpu", "cpu"])
    print(*(process.pid for process in encoder._pool._processes), flush=True)
    time.sleep(3600)
"""


@pytest.mark.process
def test_processes_do_not_outlive_a_caller_that_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING, encoding="utf-8")
    caller = subprocess.Popen([sys.executable, str(script), str(checkpoint)], stdout=subprocess.PIPE, text=True)
    try:
        assert caller.stdout is not None
        numbers = [int(number) for number in caller.stdout.readline().split()]
        assert len(numbers) == 2
        assert all(map(is_running, numbers))
    finally:
        caller.kill()
        caller.wait()
    comes_true(lambda: not any(map(is_running, numbers)))
    left = [number for number in numbers if is_running(number)]
    for number in left:
        psutil.Process(number).kill()
    assert left == []


def is_running(number: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_overrides_win_over_the_trained_template_in_every_process(checkpoint: Path) -> None:
    texts = PROSE[:3]
    expected = Encoder(checkpoint, device="cpu").encode([f"Find it: {text}" for text in texts], role="query")
    encoder = Encoder(checkpoint, device="cpu", overrides={"query_template": "llm2vec"})
    try:
        np.testing.assert_allclose(encoder.encode(texts, prompt="Find it:"), expected, atol=1e-5)
        np.testing.assert_allclose(encoder.encode(texts, prompt="Find it:", devices=["cpu"]), expected, atol=1e-5)
    finally:
        encoder.close()


def test_a_push_uploads_what_is_read_and_no_more(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(checkpoint, folder)
    shutil.copytree(checkpoint, folder / "checkpoint-10")
    for name in ("optimizer.pt", "trainer_log.jsonl", "recipe.yaml", "training_args.bin", "README.md"):
        (folder / name).write_text("x")
    encoder, calls = Encoder(folder, device="cpu"), []
    encoder.calibrate(PROSE).save(folder)

    class Hub:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repository: str, **options: object) -> str:
            calls.append((repository, options))
            return f"https://hub/{repository}"

        def upload_folder(self, **options: object) -> None:
            calls.append((options.pop("repo_id"), options))

    monkeypatch.setattr(hub, "HfApi", Hub)
    planned = encoder.push_to_hub("me/embedder", private=True, dry_run=True)
    assert calls == []
    assert "me/embedder (private)" in planned.describe()
    assert {"embedding_config.json", "README.md", RANGES_NAME, "pooler.safetensors"} <= planned.files.keys()
    assert not planned.files.keys() & {"optimizer.pt", "trainer_log.jsonl", "recipe.yaml", "training_args.bin"}

    assert encoder.push_to_hub("me/embedder", private=True, token="secret") == planned
    (repository, creation), (_, upload) = calls
    assert repository == "me/embedder"
    assert creation["private"] is True
    received = tmp_path / "received"  # whoever has only these files gets the same vectors
    received.mkdir()
    for name in upload["allow_patterns"]:
        shutil.copy(folder / name, received / name)
    np.testing.assert_array_equal(
        Encoder(received, device="cpu").encode(PROSE, precision="int8"), encoder.encode(PROSE, precision="int8")
    )

    config = json.loads((folder / "embedding_config.json").read_text())
    (folder / "embedding_config.json").write_text(json.dumps(config | {"base_model": str(tmp_path)}))
    with pytest.raises(ValueError, match=r"a folder of this machine that others do not have: push merged weights"):
        encoder.push_to_hub("me/embedder")
    with pytest.raises(ValueError, match="must name its owner"):
        encoder.push_to_hub("embedder")


def test_devices_need_a_checkpoint_and_a_list(encoder: Encoder, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"`devices` needs an Encoder of a checkpoint.*in memory"):
        encoder.encode(PROSE, devices=["cpu", "cpu"])
    with pytest.raises(ValueError, match=r"`devices` must be a list .*not 'cpu'"):
        Encoder(checkpoint).encode(PROSE, devices="cpu")
