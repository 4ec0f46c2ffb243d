"""Requests to the server of embeddings: each gets an answer of HTTP in OpenAI's words, and none stops the next."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.strategies import changed, json_files, texts, values
from tests.hostile.verdict import CASES, hostile
from tests.serve.embeddings.servers import make_server


GOOD: dict[str, Any] = {
    "input": "a text", "model": "tiny", "encoding_format": "float", "dimensions": 8, "task": "same", "prompt": None,
    "input_type": "query", "user": "u",
}  # fmt: skip
odd_headers = st.lists(
    st.tuples(
        st.sampled_from([b"content-length", b"authorization", b"content-type", b"expect", b"transfer-encoding"]),
        st.sampled_from(
            [b"", b"-1", b"x", b"1e9", b"9" * 5000, b"Bearer \xff", b"\xff\xfe", b"gzip", b"application/xml"]
        ),
    ),
    max_size=3,
)
inputs = (
    values
    | st.lists(st.integers(-3, 500) | st.sampled_from([2**63, 10**30]), max_size=4)
    | st.lists(st.text(), max_size=3)
)
bodies = json_files(changed(GOOD), st.tuples(changed(GOOD), inputs).map(lambda parts: parts[0] | {"input": parts[1]}))


def is_utf8(text: str) -> bool:
    """A path is decoded by the web server, which puts U+FFFD in place of what is no text."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "", "\u00e9"])
addresses = st.sampled_from(
    ["/v1/models", "/health", "/metrics", "/v1/embeddings/", "//v1/embeddings", "", "/"]
) | texts.filter(is_utf8)


def test_requests() -> None:
    app = make_server(api_key=None, max_texts_per_request=8).make_app()

    async def ask(
        body: bytes, headers: list[tuple[bytes, bytes]], method: str = "POST", path: str = "/v1/embeddings"
    ) -> tuple[int, bytes]:
        messages: list[dict[str, Any]] = []
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"a=%ff&a"}
        await app(scope, receive, send)
        return messages[0]["status"], b"".join(each.get("body", b"") for each in messages[1:])

    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())

        @hostile(60)
        @given(bodies, odd_headers)
        def answer(body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
            CASES["requests"] += 1
            status, told = runner.run(ask(body, headers))
            content = json.loads(told)
            assert status == 200 or (400 <= status < 500 and content["error"]["message"])

        @hostile(30)
        @given(bodies, odd_headers, methods, addresses)
        def answer_elsewhere(body: bytes, headers: list[tuple[bytes, bytes]], method: str, path: str) -> None:
            CASES["requests to other addresses"] += 1
            status, told = runner.run(ask(body, headers, method, path))
            assert status == 200 or (
                400 <= status < 500 and (method == "HEAD" or json.loads(told)["error"]["message"])
            )

        answer()
        answer_elsewhere()
        assert runner.run(ask(json.dumps(GOOD | {"task": None}).encode(), []))[0] == 200
        runner.run(lifespan.__aexit__(None, None, None))
