"""A server among clients that behave badly: nobody gets another's vectors, and nothing is held when they have gone."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.embedders import PROSE
from tests.patience import comes_true
from tests.serve.embeddings.servers import KEY, listening, make_encoder, make_server
from tests.serve.embeddings.storm import KINDS, PATIENT, storm


TEXTS = [text[: 10 + 9 * number] for number, text in enumerate(PROSE[:12])]
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="handles are counted on Linux")


def tasks() -> int:
    """Tasks of asyncio that have not ended, of all threads."""
    return sum(isinstance(each, asyncio.Task) and not each.done() for each in gc.get_objects())


def held() -> dict[str, int]:
    """What this process, and a server in it, hold."""
    return {"handles": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "tasks": tasks()}


def connect(address: str, said: bytes) -> socket.socket:
    """A client that says so much, and nothing more."""
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname, url.port or 80))
    connection.sendall(said)
    return connection


@needs_proc
def test_forty_clients_of_whom_most_behave_badly() -> None:
    encoder = make_encoder()
    expected = {text: encoder.encode(text).tolist() for text in TEXTS}
    server = make_server(encoder, KEY, max_body_bytes=60_000, max_waiting_tokens=20_000, max_waiting_requests=30)
    with listening(server) as address:
        asyncio.run(storm(address, expected, 1, rounds=1, key=KEY))  # threads begin at the first request
        before = held()
        silent = [connect(address, said) for said in (b"", b"POST /v1/embeddings HTTP/1.1\r\nContent-Le")]
        report = asyncio.run(storm(address, expected, 40, key=KEY))
        statuses = report.statuses
        assert report.wrong == []
        good = {kind: sum(number % len(KINDS) == KINDS.index(kind) for number in range(40)) for kind in PATIENT}
        assert {kind: statuses[kind, 200] for kind in PATIENT} == {kind: 2 * count for kind, count in good.items()}
        assert {status for kind, status in statuses if kind in PATIENT} <= {200, 429}
        assert {status for kind, status in statuses if kind == "broken"} <= {400, 429}
        assert {status for kind, status in statuses if kind == "cut off"} <= {0, 400, 429}
        assert {status for kind, status in statuses if kind == "huge"} <= {0, 200, 413, 429}
        assert {status for kind, status in statuses if kind in ("dripping", "reading slowly")} <= {200, 429}
        assert {status for kind, status in statuses if kind == "wrong length"} <= {0, 400, 413, 429}
        for connection in silent:
            connection.close()
        assert comes_true(lambda: not (server.waiting.places or server.waiting.tokens)), "those that have just gone"
        assert comes_true(lambda: held() == before), f"connections are being closed: {held()}, {before} before"
        assert server._bytes_arriving == 0
        assert server.worker.is_alive()
        after = asyncio.run(storm(address, expected, 1, rounds=1, key=KEY))
        assert after.statuses == {("quick", 200): 1}
    assert not server.worker.is_alive()
    assert np.isfinite(server.waiting.tokens_per_second)
