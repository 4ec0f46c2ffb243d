"""Many clients at once, of whom some are slow, go, or send what nobody should: `storm(address, expected, clients)`.

A function of a server's address, so that longer runs can use it: `storm(address, expected, 256, rounds=99)`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np


TOLERANCE = 1e-5
PATIENT = ("quick", "several", "slow")  # who come again when they are told to
KINDS = (*PATIENT, "vanishing", "cut off", "broken", "huge")


@dataclass
class Report:
    """What the clients saw."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each kind of client got which status; 0 for one that went before the answer."""
    wrong: list[str] = field(default_factory=list)
    """Texts whose vectors were not the expected ones."""


@dataclass
class Sender:
    """Speaks HTTP byte by byte, which client libraries are too polite for."""

    host: str
    port: int
    headers: str

    async def post(self, body: bytes, *, pieces: int = 1, pause: float = 0.0, leaves: bool = False) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n{self.headers}"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for start in range(0, len(body), max(1, -(-len(body) // pieces))):
                writer.write(body[start : start + -(-len(body) // pieces)])
                await writer.drain()
                await asyncio.sleep(pause)
            if leaves:
                return 0, None
            answer = await reader.read()
        except ConnectionError:  # a body that is refused before it has arrived
            return 0, None
        finally:
            writer.close()
        head_of_answer, _, content = answer.partition(b"\r\n\r\n")
        return int(head_of_answer.split()[1]), json.loads(content)


async def storm(
    address: str,
    expected: Mapping[str, Sequence[float]],
    clients: int,
    *,
    rounds: int = 2,
    seed: int = 0,
    key: str = "",
) -> Report:
    """Clients of all kinds send `rounds` requests each. `expected` has the right vector of each text that is sent."""
    url = urlsplit(address)
    headers = f"Authorization: Bearer {key}\r\n" if key else ""
    report = Report()
    texts = list(expected)

    async def client(number: int) -> None:
        kind, rng = KINDS[number % len(KINDS)], random.Random(f"{seed} {number}")
        sender = Sender(url.hostname or "", url.port or 80, headers)
        for _ in range(rounds):
            await asyncio.sleep(rng.random() * 0.05)
            asked = rng.choices(texts, k=rng.randint(2, 40) if kind in ("several", "huge") else 1)
            body = json.dumps({"input": asked * 60 if kind == "huge" else asked}).encode()
            status, answer = await send(kind, body, sender, rng)
            while status == 429 and kind in PATIENT:
                report.statuses[kind, status] += 1
                await asyncio.sleep(rng.random() * 0.1)  # the server's own advice is in whole seconds
                status, answer = await send(kind, body, sender, rng)
            report.statuses[kind, status] += 1
            if status == 200:
                report.wrong += _wrong(json.loads(body)["input"], answer, expected)

    await asyncio.gather(*map(client, range(clients)))
    return report


async def send(kind: str, body: bytes, sender: Sender, rng: random.Random) -> tuple[int, Any]:
    """One request, as a client of that kind sends it."""
    if kind == "slow":
        return await sender.post(body, pieces=4, pause=0.03)
    if kind == "vanishing":
        return await sender.post(body, leaves=True)
    if kind == "cut off":
        return await sender.post(body[: len(body) // 2] + b"\x00", leaves=rng.random() < 0.5)
    if kind == "broken":
        return await sender.post(rng.choice([b"", b"{}", b"\xff" * 50, b'{"input": [1, "a"]}']))
    return await sender.post(body)


def _wrong(asked: Sequence[str], answer: Mapping[str, Any], expected: Mapping[str, Sequence[float]]) -> list[str]:
    vectors = [item["embedding"] for item in answer["data"]]
    return [
        text
        for text, vector in zip(asked, vectors, strict=True)
        if not np.max(np.abs(np.array(vector) - np.array(expected[text]))) <= TOLERANCE
    ]
