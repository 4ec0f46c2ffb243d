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


def test_every_model_and_number_of_clients_has_its_ratio() -> None:
    """Of runs whose second variant answers twice as often, in half the time."""
    settings = serving.Settings(clients=(1, 8))
    numbers = {"requests_per_second": 10.0, "p50_ms": 4.0, "p99_ms": 8.0, "requests_per_forward": 1.0}
    runs = [
        {"case": model, "variant": variant, "repeat": 0}
        | {f"{name}_{n}": value * (factor if name == "requests_per_second" else 1 / factor)
           for name, value in numbers.items() for n in settings.clients}
        for model in settings.models
        for variant, factor in ((serving.ALONE, 1), (serving.BATCHED, 2))
    ]  # fmt: skip
    result = serving.summarize(settings, runs)
    assert [figure.value for figure in result.figures] == [2.0, 2.0, 0.5] * 3
    assert [figure.reached for figure in result.figures] == [True, False, True] * 3
    assert result.table[2][1:] == [serving.BATCHED, "20", "20", "2", "4", "0.5"]
