"""Servers of a tiny embedder, and a raw ASGI client that can be slow, or go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from torch import Tensor

from llamafactory_embed import Encoder
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.serve.embeddings.app import EmbeddingServer
from tests.embedders import make_embedder
from tests.patience import PATIENCE
from tests.tiny_models import tiny_tokenizer


KEY = "key-of-these-tests"
TASKS = {"next_line": "Find the line that follows", "same": "Find alike"}


def make_encoder(**options: Any) -> Encoder:
    """A random embedder with two tasks, the second symmetric, and two sizes."""
    more: dict[str, Any] = {"instructions": TASKS, "symmetric_tasks": ["same"], "matryoshka_dims": [8]}
    return Encoder(make_embedder(**(more | options)), tiny_tokenizer())


def make_server(encoder: Encoder | None = None, api_key: str | None = None, **options: Any) -> EmbeddingServer:
    return EmbeddingServer(encoder or make_encoder(), "tiny", ServingOptions(**options), api_key)


class HeldEncoder(Encoder):
    """Lets no forward begin before `go` is set; remembers the texts of each."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.model, encoder.tokenizer.tokenizer)
        self.go = threading.Event()
        self.begun = threading.Event()
        self.forwards: list[int] = []

    def encode_tokens(self, texts: Any) -> Tensor:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        self.forwards.append(len(texts))
        return super().encode_tokens(texts)


@contextlib.contextmanager
def listening(server: EmbeddingServer) -> Iterator[str]:
    """The server on a port of this machine; its address."""
    config = uvicorn.Config(server.make_app(), host="127.0.0.1", port=0, log_level="error", access_log=False)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join(PATIENCE)


class RawRequest:
    """One request to `/v1/embeddings`, message by message."""

    def __init__(self, app: Any, *parts: bytes, is_complete: bool = True) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for number, part in enumerate(parts, 1):
            self.send(part, more=number < len(parts) or not is_complete)
        self.messages: list[dict[str, Any]] = []
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
        self.done = asyncio.ensure_future(app(scope, self.incoming.get, self._collect))

    async def _collect(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def send(self, part: bytes, more: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def body(self) -> Any:
        return json.loads(self.messages[1]["body"])
