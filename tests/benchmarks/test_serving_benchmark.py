"""The benchmark of serving asks what it says, and counts forwards. Nothing is timed here."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

import pytest

from benchmarks import serving
from tests.embedders import PROSE
from tests.serve.embeddings.servers import listening, make_server


@pytest.mark.parametrize("batch_requests", [1, None])
def test_clients_take_turns_and_forwards_are_counted(batch_requests: int | None) -> None:
    server = make_server(batch_requests=batch_requests)
    bodies = [json.dumps({"input": text}).encode() for text in PROSE[:5]]
    with listening(server) as address:
        request = {"clients": 4, "warm_up_seconds": 0.0, "seconds": 0.2}
        found = asyncio.run(serving.ask(urlsplit(address).port, bodies, request))
    assert found["requests"] >= 4
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["requests_per_forward"] == 1 if batch_requests else found["requests_per_forward"] >= 1


def test_queries_are_different_and_short() -> None:
    queries = serving.short_queries(50)
    assert len(set(queries)) > 45
    assert max(len(query.split()) for query in queries) == 12
