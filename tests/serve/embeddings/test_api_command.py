"""`llamafactory-cli api` and `llamafactory-embed serve`: who serves what, and how a server ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
import yaml
from llamafactory.api import app as host_app

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.model.packed import TOKENS_PER_BATCH_ON_CPU
from llamafactory_embed.recipe import check_recipe
from llamafactory_embed.serve.embeddings import run
from llamafactory_embed.serve.embeddings.app import EmbeddingServer
from tests.embedders import PROSE
from tests.export.checkpoints import train
from tests.patience import PATIENCE


ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "examples" / "inference" / "wordnet_api.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    train(folder)
    return folder


def recipe_of(folder: Path, **options: Any) -> dict[str, Any]:
    """The example's, for a tiny checkpoint."""
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    names = {"model_name_or_path": str(folder / "base"), "adapter_name_or_path": str(folder / "checkpoint")}
    return recipe | names | {"query_task": "next_line"} | options


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been served."""
    calls: list[tuple[Any, ...]] = []

    def serve(checkpoint: Any, options: Any, *, device: Any = None, dtype: Any = None) -> None:
        calls.append((str(checkpoint), options, device, dtype))

    monkeypatch.setattr(run, "serve", serve)
    return calls


@pytest.mark.usefixtures("single_process")
def test_the_hosts_command_serves_an_embedder(
    trained: Path, tmp_path: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, recipe_of(trained, infer_dtype="float32"))
    assert check_recipe(path) == []
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path), "batch_tokens=77"])
    host_app.run_api()
    ((checkpoint, options, _, dtype),) = served
    assert Path(checkpoint) == trained / "checkpoint"
    assert options == ServingOptions(query_task="next_line", batch_tokens=77)
    assert str(dtype) == "torch.float32"


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_texts_per_request": 0}, "`max_texts_per_request` must be at least 1"),
        ({"model_name_or_path": "another/base"}, "is not the base model of"),
        ({"adapter_name_or_path": None}, "is not a checkpoint of an embedder"),
        ({"stage": "sft", "adapter_name_or_path": None, "api_port": 80}, "`api_port` is an option of the server"),
    ],
)
def test_what_cannot_be_served_gets_one_sentence(
    options: dict[str, Any], sentence: str, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = {name: value for name, value in recipe_of(trained, **options).items() if value is not None}
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(write(tmp_path, recipe))])
    with pytest.raises(ValueError, match=sentence):
        host_app.run_api()


def test_options_and_variables_reach_the_server(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[EmbeddingServer, dict[str, Any]]] = []
    monkeypatch.setattr(EmbeddingServer, "make_app", lambda self: self)
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: started.append((app, options)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("API_HOST", "API_PORT", "API_MODEL_NAME", "API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run.serve(trained / "checkpoint", ServingOptions(), device="cpu")
    for name, value in {"HOST": "::1", "PORT": "81", "MODEL_NAME": "other", "KEY": "secret"}.items():
        monkeypatch.setenv(f"API_{name}", value)
    run.serve(trained / "checkpoint", ServingOptions(), device="cpu")
    options = ServingOptions("localhost", 0, "mine", batch_tokens=77, drain_timeout=7)
    run.serve(trained / "checkpoint", options, device="cpu", dtype=torch.bfloat16)
    addresses = [(options["host"], options["port"], server.name) for server, options in started]
    assert addresses == [("0.0.0.0", 8000, "checkpoint"), ("::1", 81, "other"), ("localhost", 0, "mine")]
    assert [server._authorization for server, _ in started] == [None, b"Bearer secret", b"Bearer secret"]
    assert [server.waiting.batch_tokens for server, _ in started] == [TOKENS_PER_BATCH_ON_CPU] * 2 + [77]
    assert started[2][1]["timeout_graceful_shutdown"] == 7
    assert started[2][0].encoder.model.decoder.dtype == torch.bfloat16


def test_our_command_has_the_same_options(trained: Path, served: list[Any]) -> None:
    folder = str(trained / "checkpoint")
    assert main(["serve", folder, "--api-port", "0", "--batch-requests", "1", "--dtype", "bfloat16"]) == 0
    ((checkpoint, options, device, dtype),) = served
    assert (checkpoint, options, device) == (folder, ServingOptions(api_port=0, batch_requests=1), None)
    assert str(dtype) == "torch.bfloat16"


@pytest.mark.process
def test_a_server_that_is_told_to_stop_answers_first_and_exits_with_0(trained: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = write(tmp_path, recipe_of(trained, infer_dtype="float32", api_host="127.0.0.1", api_port=port))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "API_KEY": "of-this-test"}
    command = [sys.executable, "-m", "llamafactory.cli", "api", str(path)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Serving checkpoint"):
                break
        texts = [f"{text} {number}" for number in range(120) for text in PROSE]
        connection = connect(port)
        body = json.dumps({"input": texts, "input_type": "query"})
        connection.request("POST", "/v1/embeddings", body, {"Authorization": "Bearer of-this-test"})
        while not (metric(port, "tokens_waiting") or metric(port, "forwards_total")):
            pass
        process.send_signal(signal.SIGTERM)
        answer = json.loads(connection.getresponse().read())
        process.communicate()
        watchdog.cancel()
    assert process.returncode == 0
    vectors = np.array([item["embedding"] for item in answer["data"]])
    expected = Encoder(trained / "checkpoint").encode(texts, task="next_line")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def connect(port: int) -> http.client.HTTPConnection:
    """To a server that listens, or will in a moment."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.connect()
        except ConnectionRefusedError:
            threading.Event().wait(0.05)
        else:
            return connection


def metric(port: int, name: str) -> float:
    connection = connect(port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"llamafactory_embed_{name} ")]
    return float(value)
