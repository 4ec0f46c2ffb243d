"""Many clients at once, of whom some are slow, go, or send what nobody should: `storm(address, expected, clients)`.

A function of a server's address, so that longer runs can use it: `storm(address, expected, 256, seconds=60)`.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np


TOLERANCE = 1e-5
PATIENT = ("quick", "several", "slow")  # who come again when they are told to
AGAIN = (0, 408, 429)  # cut off in the middle, too slow on a machine that has no time for anybody, too many
KINDS = (*PATIENT, "vanishing", "cut off", "broken", "huge", "dripping", "reading slowly", "wrong length")
SMALL_BUFFER = 4096  # bytes that the kernel takes for a client that does not read


@dataclass
class Report:
    """What the clients saw."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each kind of client got which status; 0 for one that went before the answer."""
    wrong: list[str] = field(default_factory=list)
    """Texts whose vectors were not the expected ones."""
    seconds: list[float] = field(default_factory=list)
    """From the first attempt of a patient client to its vectors."""

    @property
    def right(self) -> int:
        """Answers with vectors."""
        return sum(count for (_, status), count in self.statuses.items() if status == 200)

    def summary(self) -> dict[str, Any]:
        """All of it in a few figures."""
        statuses: dict[str, dict[str, int]] = {}
        for (kind, status), count in sorted(self.statuses.items()):
            statuses.setdefault(kind, {})[str(status)] = count
        median, slowest = np.percentile(self.seconds or [0.0], (50, 99)).round(4).tolist()
        return {"statuses": statuses, "wrong": len(self.wrong), "median_seconds": median, "p99_seconds": slowest}


@dataclass
class Sender:
    """Speaks HTTP byte by byte, which client libraries are too polite for."""

    host: str
    port: int
    headers: str

    async def post(
        self,
        body: bytes,
        *,
        pieces: int = 1,
        pause: float = 0.0,
        leaves: bool = False,
        length: str | None = None,
        reads_slowly: bool = False,
    ) -> tuple[int, Any]:
        """The status of the answer and what it holds. `length` is what the client says of its body, `pause` comes
        after each piece."""
        reader, writer = await self._connect(reads_slowly)
        try:
            head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n{self.headers}"
            writer.write(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode())
            for start in range(0, len(body), max(1, -(-len(body) // pieces))):
                writer.write(body[start : start + -(-len(body) // pieces)])
                await writer.drain()
                await asyncio.sleep(pause)
            if leaves:
                return 0, None
            answer = await self._read_slowly(reader, pause) if reads_slowly else await reader.read()
        except ConnectionError:  # a body that is refused before it has arrived
            return 0, None
        finally:
            writer.close()
        head_of_answer, _, content = answer.partition(b"\r\n\r\n")
        is_json = b"application/json" in head_of_answer.lower()
        return int(head_of_answer.split()[1]), json.loads(content) if is_json else None

    async def _connect(self, reads_slowly: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not reads_slowly:
            return await asyncio.open_connection(self.host, self.port)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (self.host, self.port))
        return await asyncio.open_connection(sock=connection, limit=SMALL_BUFFER)

    async def _read_slowly(self, reader: asyncio.StreamReader, pause: float) -> bytes:
        answer = b""
        while part := await reader.read(SMALL_BUFFER):
            answer += part
            await asyncio.sleep(pause)
        return answer


async def storm(
    address: str,
    expected: Mapping[str, Sequence[float]],
    clients: int,
    *,
    rounds: int = 2,
    seconds: float = 0.0,
    kinds: Sequence[str] = KINDS,
    drip: float = 0.01,
    pause: float = 0.05,
    seed: int = 0,
    key: str = "",
    report: Report | None = None,
) -> Report:
    """Clients of these kinds send `rounds` requests each, and more until `seconds` have passed. `expected` has the
    right vector of each text that is sent. `drip` is the time between two bytes of who drips, `pause` the
    longest before a client's next request. A `report` that is given
    is filled, and can be looked at in the meantime."""
    url = urlsplit(address)
    headers = f"Authorization: Bearer {key}\r\n" if key else ""
    report = Report() if report is None else report
    texts = list(expected)
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        kind, rng = kinds[number % len(kinds)], random.Random(f"{seed} {number}")
        sender = Sender(url.hostname or "", url.port or 80, headers)
        turn = 0
        while turn < rounds or time.monotonic() < end:
            turn += 1
            await asyncio.sleep(rng.random() * pause)
            asked = rng.choices(texts, k=rng.randint(2, 40) if kind in ("several", "huge", "reading slowly") else 1)
            body = json.dumps({"input": asked * 60 if kind == "huge" else asked}).encode()
            start = time.monotonic()
            status, answer = await send(kind, body, sender, rng, drip)
            while status in AGAIN and kind in PATIENT:
                report.statuses[kind, status] += 1
                await asyncio.sleep(rng.random() * 0.1)  # the server's own advice is in whole seconds
                status, answer = await send(kind, body, sender, rng, drip)
            report.statuses[kind, status] += 1
            if kind in PATIENT:
                report.seconds.append(time.monotonic() - start)
            if status == 200:
                report.wrong += _wrong(json.loads(body)["input"], answer, expected)

    await asyncio.gather(*map(client, range(clients)))
    return report


async def send(kind: str, body: bytes, sender: Sender, rng: random.Random, drip: float) -> tuple[int, Any]:
    """One request, as a client of that kind sends it."""
    if kind == "slow":
        return await sender.post(body, pieces=4, pause=0.03)
    if kind == "vanishing":
        return await sender.post(body, leaves=True)
    if kind == "cut off":
        return await sender.post(body[: len(body) // 2] + b"\x00", leaves=rng.random() < 0.5)
    if kind == "broken":
        return await sender.post(rng.choice([b"", b"{}", b"\xff" * 50, b'{"input": [1, "a"]}']))
    if kind == "dripping":
        return await sender.post(body, pieces=len(body), pause=drip)
    if kind == "reading slowly":
        return await sender.post(body, pause=drip, reads_slowly=True)
    if kind == "wrong length":
        length = rng.choice([str(len(body) // 2), str(2 * len(body)), "-1", "x", "1e9", "9" * 30])
        return await sender.post(body, length=length, pause=drip, leaves=length == str(2 * len(body)))
    return await sender.post(body)


def _wrong(asked: Sequence[str], answer: Mapping[str, Any], expected: Mapping[str, Sequence[float]]) -> list[str]:
    vectors = [item["embedding"] for item in answer["data"]]
    return [
        text
        for text, vector in zip(asked, vectors, strict=True)
        if not np.max(np.abs(np.array(vector) - np.array(expected[text]))) <= TOLERANCE
    ]
