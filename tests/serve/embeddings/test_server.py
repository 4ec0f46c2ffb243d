"""`/v1/embeddings` answers what `Encoder` computes, whatever the format, and refuses in OpenAI's words."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from llamafactory_embed import Encoder
from llamafactory_embed.serve.embeddings.app import EmbeddingServer
from llamafactory_embed.serve.embeddings.run import require_server
from tests.embedders import PROSE
from tests.patience import PATIENCE
from tests.serve.embeddings.servers import KEY, TASKS, HeldEncoder, RawRequest, listening, make_encoder, make_server
from tests.tiny_models import VOCABULARY_SIZE


TEXTS = PROSE[:5]
BODY = json.dumps({"input": TEXTS[0]}).encode()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make_encoder()


@pytest.fixture(scope="module")
def client(encoder: Encoder) -> Iterator[TestClient]:
    with TestClient(make_server(encoder).make_app()) as client:
        yield client


def vectors_of(answer: dict[str, Any]) -> np.ndarray:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/embeddings", json={"input": TEXTS, **body})
    assert response.status_code == 200, response.text
    return response.json()


# ---------------------------------------------------- answers ----------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "encoded"),
    [
        ({}, {}),
        ({"input_type": "search_document"}, {"role": "document"}),
        ({"input_type": "query"}, {"role": "query"}),
        ({"task": "next_line"}, {"task": "next_line"}),
        ({"input_type": "next_line"}, {"task": "next_line"}),
        ({"input_type": "retrieval.passage", "task": "same"}, {"task": "same", "role": "document"}),
        ({"prompt": "Find an answer"}, {"prompt": "Find an answer"}),
        ({"dimensions": 8, "task": "same"}, {"dimensions": 8, "task": "same"}),
    ],
)
def test_answers_are_what_encoder_computes(
    asked: dict[str, Any], encoded: dict[str, Any], client: TestClient, encoder: Encoder
) -> None:
    answer = post(client, model="tiny", user="someone", **asked)
    np.testing.assert_allclose(vectors_of(answer), encoder.encode(TEXTS, **encoded), atol=1e-6)
    purpose = {name: value for name, value in encoded.items() if name != "dimensions"}
    read = sum(len(text.token_ids) for text in encoder.tokenize(TEXTS, **purpose))
    assert answer["usage"] == {"prompt_tokens": read, "total_tokens": read}
    assert (answer["object"], answer["model"]) == ("list", "tiny")


def test_one_text_many_texts_and_token_ids(client: TestClient, encoder: Encoder) -> None:
    many = [f"{text} {number}" for number in range(30) for text in TEXTS]  # tokenized in several parts
    np.testing.assert_allclose(vectors_of(post(client, input=many)), encoder.encode(many), atol=1e-5)
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors_of(post(client, input=TEXTS[0])), expected[:1], atol=1e-5)
    token_ids = [text.token_ids for text in encoder.tokenize(TEXTS)]
    np.testing.assert_allclose(vectors_of(post(client, input=token_ids)), expected, atol=1e-6)
    np.testing.assert_allclose(vectors_of(post(client, input=token_ids[1])), expected[1:2], atol=1e-5)


def test_base64_holds_the_same_numbers(client: TestClient) -> None:
    written = post(client, encoding_format="base64")
    packed = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in written["data"]]
    np.testing.assert_array_equal(packed, vectors_of(post(client, encoding_format="float")))


def test_the_only_task_or_the_chosen_one_is_that_of_queries() -> None:
    one = make_encoder(instructions={"next_line": TASKS["next_line"]}, symmetric_tasks=[])
    for server, task in ((make_server(one), "next_line"), (make_server(query_task="same"), "same")):
        with TestClient(server.make_app()) as client:
            vectors = vectors_of(post(client, input_type="query"))
        np.testing.assert_allclose(vectors, server.encoder.encode(TEXTS, task=task), atol=1e-6)
    with pytest.raises(ValueError, match=r"`query_task: sane`: .*next_line, same; did you mean `same`"):
        make_server(query_task="sane")


def test_models_health_and_metrics(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["dimensions"], card["tasks"]) == ("tiny", [8, 32], list(TASKS))
    assert client.get("/health").json() == {"status": "ok"}
    parser = pytest.importorskip("prometheus_client.parser")

    def read() -> dict[str, float]:
        families = parser.text_string_to_metric_families(client.get("/metrics").text)
        return {
            sample.name.removeprefix("llamafactory_embed_") + sample.labels.get("status", ""): sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }

    before = read()
    tokens = post(client)["usage"]["total_tokens"]
    client.post("/v1/embeddings", content=b"{")
    after = read()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["responses_total200"] == grown["responses_total400"] == 1
    assert (grown["texts_total"], grown["tokens_total"], grown["forwards_total"]) == (len(TEXTS), tokens, 1)
    assert grown["response_seconds_count"] == 2
    assert (after["requests_in_progress"], after["tokens_waiting"]) == (0, 0)
    assert after["response_seconds_sum"] > after["forward_seconds_total"] > 0


# ---------------------------------------------------- refusals ----------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "sentence"),
    [
        (b"{", 400, None, "is not JSON"),
        (b"[" * 100_000, 400, None, "is not JSON"),
        (b"[]", 400, None, "must be a JSON object"),
        ({}, 400, "input", "`input` must be a text"),
        ({"input": []}, 400, "input", "`input` must be a text"),
        ({"input": ["a", 1]}, 400, "input", "must be texts, as the first one is; item 1 is not"),
        ({"input": [[1], []]}, 400, "input", "item 1 is not"),
        ({"input": [True]}, 400, "input", "item 0 is not"),
        ({"input": ["a"] * 2049}, 400, "input", "2049 texts, more than 2048"),
        ({"input": ["a"] * 70 + ["\ud800"]}, 400, "input", "Text 70 cannot be tokenized"),
        ({"input": [VOCABULARY_SIZE]}, 400, "input", "those of another tokenizer"),
        ({"input": [3] * 49}, 400, "input", "49 token ids, more than the 48"),
        ({"input": [3], "task": "same"}, 400, "input", "no instruction is written before them"),
        ({"input": "a", "model": "big"}, 404, "model", "no model 'big', only 'tiny'"),
        ({"input": "a", "task": "sane"}, 400, "task", "not 'sane'; did you mean `same`"),
        ({"input": "a", "input_type": 3}, 400, "input_type", "must be one of"),
        ({"input": "a", "prompt": 3}, 400, "prompt", "must be an instruction"),
        ({"input": "a", "prompt": "b", "task": "same"}, 400, "prompt", "not both"),
        ({"input": "a", "dimensions": 9}, 400, "dimensions", "was not trained; this model has 8, 32"),
        ({"input": "a", "dimensions": "8"}, 400, "dimensions", "must be a whole number"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "must be float or base64"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(
    body: Any, status: int, param: str | None, sentence: str, client: TestClient
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/v1/embeddings", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert sentence in error["message"]


def test_unknown_addresses_and_methods(client: TestClient) -> None:
    for response, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/embeddings"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_key_opens_everything_but_health_and_metrics() -> None:
    with TestClient(make_server(api_key=KEY).make_app()) as client:
        for given in (None, f"Bearer {KEY}x", "Bearer ", KEY, "Bearer schlüssel".encode("latin-1")):
            headers = {} if given is None else {"Authorization": given}
            assert client.post("/v1/embeddings", json={"input": "a"}, headers=headers).status_code == 401
            assert client.get("/v1/models", headers=headers).json()["error"]["code"] == "invalid_api_key"
        right = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/v1/embeddings", json={"input": "a"}, headers=right).status_code == 200
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200


def test_a_body_may_not_be_large(encoder: Encoder) -> None:
    with TestClient(make_server(encoder, max_body_bytes=100).make_app()) as client:
        fits, too_large = (json.dumps({"input": "a" * count}).encode() for count in (50, 100))
        assert client.post("/v1/embeddings", content=fits).status_code == 200
        assert client.post("/v1/embeddings", content=too_large).status_code == 413
        assert client.post("/v1/embeddings", content=iter([too_large[:60], too_large[60:]])).status_code == 413


def test_serving_names_what_is_missing() -> None:
    require_server()
    with pytest.raises(ValueError, match=r"Serving needs no_such_server: pip install no_such_server\."):
        require_server(("starlette", "no_such_server"))


# ------------------------------ who shares a forward, who waits, who goes ------------------------------


def in_loop(server: EmbeddingServer, play: Any) -> Any:
    """Play a scene in one event loop, with the server's worker running."""

    async def scene() -> Any:
        app = server.make_app()
        async with app.router.lifespan_context(app):
            try:
                return await asyncio.wait_for(play(app), PATIENCE)
            finally:
                if isinstance(server.encoder, HeldEncoder):
                    server.encoder.go.set()

    return asyncio.run(scene())


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_requests_that_wait_share_a_forward_and_get_their_own_vectors(encoder: Encoder) -> None:
    held = HeldEncoder(encoder)
    server = make_server(held)

    async def play(app: Any) -> list[RawRequest]:
        requests = [RawRequest(app, json.dumps({"input": PROSE[:1]}).encode())]
        await until(held.begun.is_set)
        requests += [
            RawRequest(app, json.dumps({"input": PROSE[n : n + 1 + n % 3], "task": "same"}).encode()) for n in range(8)
        ]
        await until(lambda: len(server.waiting._waiting) == 8)
        held.go.set()
        await asyncio.gather(*(each.done for each in requests))
        return requests

    requests = in_loop(server, play)
    assert held.forwards == [1, 15]
    for n, request in enumerate(requests[1:]):
        alone = np.stack([encoder.encode(text, task="same") for text in PROSE[n : n + 1 + n % 3]])
        np.testing.assert_allclose(vectors_of(request.body), alone, atol=1e-5)


@pytest.mark.parametrize("options", [{"max_waiting_requests": 2}, {"max_waiting_tokens": 1}])
def test_a_full_queue_is_answered_429_and_is_open_again_later(options: dict[str, int], encoder: Encoder) -> None:
    held = HeldEncoder(encoder)
    server = make_server(held, **options)

    async def play(app: Any) -> None:
        first = RawRequest(app, BODY)
        await until(held.begun.is_set)
        second = RawRequest(app, BODY)  # has more tokens than may wait, but nothing else waits
        await until(lambda: server.waiting.tokens)
        third = RawRequest(app, BODY)
        await third.done
        assert (third.status, third.body["error"]["type"]) == (429, "rate_limit_error")
        assert int(dict(third.messages[0]["headers"])[b"retry-after"]) >= 1
        held.go.set()
        await asyncio.gather(first.done, second.done)
        assert first.status == second.status == 200
        fourth = RawRequest(app, BODY)
        await fourth.done
        assert fourth.status == 200

    in_loop(server, play)


def test_who_goes_leaves_the_queue_and_is_not_embedded(encoder: Encoder) -> None:
    held = HeldEncoder(encoder)
    server = make_server(held)

    async def play(app: Any) -> None:
        first = RawRequest(app, BODY)
        await until(held.begun.is_set)
        second = RawRequest(app, json.dumps({"input": PROSE[:7]}).encode())
        await until(lambda: server.waiting.tokens)
        second.leave()
        await second.done
        assert (server.waiting.tokens, server.waiting.places) == (0, 1)
        first.leave()  # its text is in the model already
        await first.done
        assert server.waiting.places == 0
        held.go.set()
        third = RawRequest(app, BODY)
        await third.done
        assert third.status == 200

    in_loop(server, play)
    assert held.forwards == [1, 1]
    assert 'responses_total{status="499"} 2' in server.metrics.write({})


def test_who_has_gone_before_its_turn_takes_no_place_and_is_not_read(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(encoder, max_waiting_requests=1)
    read: list[bytes] = []
    monkeypatch.setattr(server, "_read", lambda body: read.append(body))

    async def play(app: Any) -> None:
        gone = [RawRequest(app, BODY) for _ in range(5)]
        for each in gone:
            each.leave()
        await asyncio.gather(*(each.done for each in gone))
        assert {each.status for each in gone} == {499}, "and not 429"

    in_loop(server, play)
    assert not read


def test_a_request_that_is_too_large_for_the_queue_is_refused_before_all_of_it_is_tokenized(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldEncoder(encoder)
    server = make_server(held, max_waiting_tokens=500)

    async def play(app: Any) -> None:
        first = RawRequest(app, BODY)
        await until(held.begun.is_set)
        second = RawRequest(app, BODY)  # not before: they would share the forward, and nothing would wait
        await until(lambda: server.waiting.tokens)
        texts: list[int] = []
        tokenize = server.reader.tokenize

        def counted(asked: Any, start: int, end: int) -> Any:
            texts.append(len(found := tokenize(asked, start, end)))
            return found

        monkeypatch.setattr(server.reader, "tokenize", counted)
        large = RawRequest(app, json.dumps({"input": PROSE[:4] * 200}).encode())
        await large.done
        assert large.status == 429
        assert sum(texts) < 200
        held.go.set()
        await asyncio.gather(first.done, second.done)

    in_loop(server, play)


def test_who_sends_slowly_holds_no_place(encoder: Encoder) -> None:
    server = make_server(encoder, read_timeout=0.2, max_waiting_requests=1, max_body_bytes=len(BODY))

    async def play(app: Any) -> None:
        slow = [RawRequest(app, BODY[:9], is_complete=False) for _ in range(5)]
        await asyncio.sleep(0)
        assert server.waiting.places == 0
        quick = RawRequest(app, BODY)
        await quick.done
        assert quick.status == 200
        gone = RawRequest(app, BODY[:9], is_complete=False)
        gone.leave()
        await gone.done
        assert gone.status == 499
        await asyncio.gather(*(each.done for each in slow))
        assert {each.status for each in slow} == {408}
        many = [RawRequest(app, BODY[:-1], is_complete=False) for _ in range(17)]
        await asyncio.gather(*(each.done for each in many))
        assert {each.status for each in many} == {408, 429}, "they share a limit of bytes"
        assert server._bytes_arriving == 0

    in_loop(server, play)


def test_a_forward_that_fails_takes_only_its_own_requests_along(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(encoder)
    right = server.encoder.encode_tokens

    def fail(texts: Any) -> Any:
        monkeypatch.setattr(server.encoder, "encode_tokens", right)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.encoder, "encode_tokens", fail)
    with TestClient(server.make_app()) as client:
        failed = client.post("/v1/embeddings", json={"input": TEXTS})
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert "out of memory" not in failed.text
        assert client.post("/v1/embeddings", json={"input": TEXTS}).status_code == 200
    assert "A forward of 5 texts failed" in caplog.text


def test_vectors_that_are_no_numbers_are_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server(encoder)
    right = server.encoder.encode_tokens
    monkeypatch.setattr(server.encoder, "encode_tokens", lambda texts: right(texts) * float("nan"))
    with TestClient(server.make_app()) as client:
        answer = client.post("/v1/embeddings", json={"input": TEXTS})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "The model failed: its embedding holds nan or inf."


def test_when_the_thread_of_the_model_has_ended_everybody_is_told(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(encoder)

    def end(texts: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr(server.encoder, "encode_tokens", end)
    with TestClient(server.make_app()) as client:
        for _ in range(2):  # who was in the forward, and who comes afterwards
            told = client.post("/v1/embeddings", json={"input": TEXTS})
            assert told.status_code == 503
            assert told.json()["error"]["message"] == "The thread of the model has ended: start the server again."
        assert client.get("/health").status_code == 503
        assert server.waiting.places == server.waiting.tokens == 0


# ---------------------------------------------------- clients ----------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="the extra `dev` brings openai")
def test_the_client_of_openai(encoder: Encoder) -> None:
    import openai

    with listening(make_server(encoder, api_key=KEY)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
        assert [model.id for model in client.models.list()] == ["tiny"]
        answer = client.embeddings.create(model="tiny", input=TEXTS, extra_body={"task": "same"})
        vectors = [item.embedding for item in answer.data]  # asked for in base64
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS, task="same"), atol=1e-6)
        with pytest.raises(openai.BadRequestError, match="was not trained"):
            client.embeddings.create(model="tiny", input="a", dimensions=9)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()


@pytest.mark.skipif(importlib.util.find_spec("langchain_openai") is None, reason="langchain-openai is not installed")
def test_langchain(encoder: Encoder) -> None:
    from langchain_openai import OpenAIEmbeddings

    with listening(make_server(encoder)) as address:
        common = {"model": "tiny", "base_url": f"{address}/v1", "api_key": "none", "check_embedding_ctx_length": False}
        documents = OpenAIEmbeddings(**common).embed_documents(TEXTS)
        np.testing.assert_allclose(documents, encoder.encode(TEXTS), atol=1e-6)
        queries = OpenAIEmbeddings(**common, model_kwargs={"extra_body": {"task": "next_line"}})
        np.testing.assert_allclose(
            queries.embed_query(TEXTS[0]), encoder.encode(TEXTS[0], task="next_line"), atol=1e-6
        )
