"""Requests a second and waiting times of our server: continuous batching against one request a forward."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .inputs import ModelSize, save_model
from .processes import Run, Variant, take_turns
from .results_file import Result, ratio, table_of


TITLE = "Serving"
BATCHED, ALONE = "continuous batching", "one request a forward"


# Qwen2 with random weights. The larger the model, the more of a request's time are its own tokens, which sharing a
# forward does not save on a CPU.
MODELS = {
    "2 layers of 64": ModelSize(layers=2, hidden_size=64, intermediate_size=128, heads=2, key_value_heads=1),
    "4 layers of 256": ModelSize(layers=4, hidden_size=256, intermediate_size=512, heads=4),
    "6 layers of 384": ModelSize(),
}


@dataclass(frozen=True)
class Settings:
    models: Mapping[str, ModelSize] = field(default_factory=lambda: MODELS)
    clients: tuple[int, ...] = (1, 8, 64)
    queries: int = 2000  # different ones; each request holds one
    seconds: float = 8.0
    warm_up_seconds: float = 2.0
    threads: int = 1  # of the model: the other core is for HTTP and the clients


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Both ways in turns, for each model and each number of clients: closed loops, in which every client waits for its
    answer and asks again."""
    queries = folder / "queries.json"
    queries.write_text(json.dumps(short_queries(settings.queries)), "utf-8")
    request: dict[str, Any] = {"queries": str(queries), "clients": settings.clients, "threads": settings.threads}
    request |= {"seconds": settings.seconds, "warm_up_seconds": settings.warm_up_seconds}
    cases = {}
    for number, (name, size) in enumerate(settings.models.items()):
        checkpoint = str(save_embedder(folder / str(number), size))
        cases[name] = {
            variant: Variant("benchmarks.serving:run", request | {"checkpoint": checkpoint, "batch_requests": most})
            for variant, most in ((ALONE, 1), (BATCHED, None))
        }
    return summarize(settings, take_turns(cases, repeats))


def summarize(settings: Settings, runs: list[Run]) -> Result:
    """Ratios for each model and number of clients; the aim is for the most."""
    most = max(settings.clients)
    figures = []
    for model in settings.models:
        for clients in settings.clients:
            what = f"requests a second, {model}, {named(clients)}"
            aim = 3.0 if clients == most else None
            key = f"requests_per_second_{clients}"
            figures.append(ratio(what, runs, model, BATCHED, ALONE, key, at_least=aim))
        what = f"99th percentile, {model}, {named(most)}"
        figures.append(ratio(what, runs, model, BATCHED, ALONE, f"p99_ms_{most}", at_most=1.0))
    columns: dict[str, Callable[[Callable[[str], float]], str]] = {
        f"requests/s, {named(clients)}": lambda median, n=clients: f"{median(f'requests_per_second_{n}'):.0f}"
        for clients in settings.clients
    }
    columns |= {
        f"median, ms, {named(most)}": lambda median: f"{median(f'p50_ms_{most}'):.0f}",
        f"99th percentile, ms, {named(most)}": lambda median: f"{median(f'p99_ms_{most}'):.0f}",
        f"requests a forward, {named(most)}": lambda median: f"{median(f'requests_per_forward_{most}'):.1f}",
    }
    return Result(dataclasses.asdict(settings), runs, figures, table_of(runs, columns))


def named(clients: int) -> str:
    """How a number of clients is called in the tables."""
    return f"{clients} client{'s' if clients > 1 else ''}"


def save_embedder(folder: Path, size: ModelSize) -> Path:
    """A checkpoint as training leaves it, whose queries have an instruction."""
    from transformers import AutoModel, AutoTokenizer

    from llamafactory_embed.hparams.embedding import EmbeddingOptions
    from llamafactory_embed.loading import checkpoint
    from llamafactory_embed.model.embedding import EmbeddingModel
    from llamafactory_embed.model.embedding_config import EmbeddingConfig

    base = save_model(folder / "base", size)
    instructions = {"gloss": "Given a definition, retrieve the word"}
    config = EmbeddingConfig.from_options(EmbeddingOptions(), cutoff_len=size.longest, instructions=instructions)
    checkpoint.save_checkpoint(EmbeddingModel(AutoModel.from_pretrained(base), config), folder / "checkpoint")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def short_queries(count: int) -> list[str]:
    """Sentences of the bundled prose, about as long as a question."""
    from .encode import short_paragraphs

    return [" ".join(text.split()[:12]) for text in short_paragraphs(count)]


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Start a server in a process of its own, let each number of clients ask for a while, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "import sys; from llamafactory_embed.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "serve", request["checkpoint"]]
    command += ["--api-host", "127.0.0.1", "--api-port", str(port), "--device", "cpu"]
    if request["batch_requests"] is not None:
        command += ["--batch-requests", str(request["batch_requests"])]
    queries = json.loads(Path(request["queries"]).read_text("utf-8"))
    bodies = [json.dumps({"input": query, "input_type": "query"}).encode() for query in queries]
    environment = {name: value for name, value in os.environ.items() if name != "API_KEY"}
    environment["OMP_NUM_THREADS"] = str(request["threads"])
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            while not server.stdout.readline().startswith("Serving"):
                if server.poll() is not None:
                    raise RuntimeError("The server did not start.")
            found: dict[str, Any] = {}
            for clients in request["clients"]:
                asked = asyncio.run(ask(port, bodies, request | {"clients": clients}))
                found |= {f"{name}_{clients}": value for name, value in asked.items()}
            return found
        finally:
            server.terminate()


async def ask(port: int, bodies: list[bytes], request: dict[str, Any]) -> dict[str, Any]:
    """Closed loops of all clients, first to warm up."""
    await loop_clients(port, bodies, request["clients"], request["warm_up_seconds"])
    before = await forwards(port)
    start = time.perf_counter()
    seconds = sorted(await loop_clients(port, bodies, request["clients"], request["seconds"]))
    elapsed = time.perf_counter() - start
    after = await forwards(port)
    return {
        "requests_per_second": len(seconds) / elapsed,
        "p50_ms": 1000 * median(seconds),
        "p99_ms": 1000 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))],
        "requests_per_forward": len(seconds) / max(1, after - before),
        "requests": len(seconds),
    }


async def loop_clients(port: int, bodies: list[bytes], clients: int, seconds: float) -> list[float]:
    """How long each answer took; every client asks at least once."""
    end = time.perf_counter() + seconds
    taken: list[float] = []

    async def client(number: int) -> None:
        reader, writer = await connect(port)
        for turn in range(number, sys.maxsize, clients):
            start = time.perf_counter()
            if start >= end and turn != number:
                break
            await exchange(reader, writer, "POST /v1/embeddings", bodies[turn % len(bodies)])
            taken.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return taken


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To a server that listens, or will in a moment."""
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str, body: bytes = b"") -> bytes:
    """One request on an open connection, with as little work for this process as can be: it shares the cores."""
    writer.write(f"{what} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    content = await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))
    if " 200 " not in head.splitlines()[0]:
        raise RuntimeError(f"{head.splitlines()[0]}: {content[:200]!r}")
    return content


async def forwards(port: int) -> float:
    """How often the model has run, by the server's own metrics."""
    reader, writer = await connect(port)
    page = (await exchange(reader, writer, "GET /metrics")).decode()
    writer.close()
    (line,) = [line for line in page.splitlines() if line.startswith("llamafactory_embed_forwards_total ")]
    return float(line.split()[1])
