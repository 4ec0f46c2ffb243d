"""The server as an ASGI application: HTTP on one side, the queue of the model on the other."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...data.tokenization import TokenizedText
from ...encoder.encoder import Encoder
from ...hparams.serving import ServingOptions
from ...model.packed import tokens_per_batch
from .metrics import CONTENT_TYPE, ServingMetrics
from .requests import EmbeddingRequest, RequestError, RequestReader, write_answer
from .waiting import ModelStoppedError, OverloadError, Ticket, WaitingRequests
from .worker import EmbeddingWorker


OWNER = "llamafactory-embed"  # in `/v1/models`, by which `verify` knows a server of ours
CLIENT_GONE = 499  # as web servers log it; nobody reads that answer
LONGEST_LENGTH = 20  # digits of a number of bytes
TEXTS_AT_ONCE = 64  # tokenized before the next request gets its turn
TURNS_TO_HEAR = 3  # of the event loop, after which it has heard of who went behind a body; they cost microseconds
BODIES_AT_ONCE = 16  # the largest bodies that may be on their way in at the same time; of small ones, as many as fit

Value = TypeVar("Value")


class EmbeddingServer:
    """One model and its clients."""

    def __init__(self, encoder: Encoder, name: str, options: ServingOptions, api_key: str | None = None) -> None:
        self.encoder = encoder
        self.name = name
        self.options = options
        self.metrics = ServingMetrics()
        batch_tokens = tokens_per_batch(encoder.config.max_tokens_per_batch, encoder.model.device)
        self.waiting = WaitingRequests(options, batch_tokens)
        self.reader = RequestReader(encoder, name, options.query_task, options.max_texts_per_request)
        self.worker = EmbeddingWorker(encoder, self.waiting, self.metrics)
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        # A tokenizer belongs to one thread; writing answers is Python, which gains nothing from more.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._writing = ThreadPoolExecutor(1, "writing")
        self._bytes_arriving = 0
        self._started = int(time.time())

    def make_app(self) -> Starlette:
        """The application, which starts the worker and at its end lets it finish what waits."""
        app = Starlette(
            routes=[
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
            ],
            exception_handlers={HTTPException: _refuse_route},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False  # to an address made of the client's own `Host`, and no answer of OpenAI's
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            self.waiting.close()
            await asyncio.to_thread(self.worker.join)
            self._tokenizing.shutdown()
            self._writing.shutdown()

    # ------------------------------ routes ------------------------------

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        start = time.perf_counter()
        try:
            response = await self._answer(request)
        except RequestError as error:
            response = _refuse(error)
        except OverloadError as error:
            response = _refuse(RequestError(str(error), 429, "rate_limit_exceeded", retry_after=error.retry_after))
        except ModelStoppedError as error:
            response = _refuse(RequestError(str(error), 503, "model_stopped"))
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        self.metrics.count_response(response.status_code, time.perf_counter() - start)
        return response

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one that is served, and how it may be asked."""
        try:
            self._check_key(request)
        except RequestError as error:
            return _refuse(error)
        config = self.encoder.config
        card: dict[str, Any] = {"id": self.name, "object": "model", "created": self._started, "owned_by": OWNER}
        card["dimensions"] = sorted({*(config.matryoshka_dims or []), self.encoder.dimension})
        card["tasks"] = list(config.instructions)
        return JSONResponse({"object": "list", "data": [card]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while the model can be used."""
        is_alive = self.worker.is_alive() and not self.waiting.given_up  # a thread takes a moment to end
        return JSONResponse({"status": "ok" if is_alive else "stopped"}, 200 if is_alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        gauges = {
            "requests_in_progress": ("Requests that were taken and are not answered.", self.waiting.places),
            "tokens_waiting": ("Tokens that wait for the model.", self.waiting.tokens),
        }
        return Response(self.metrics.write(gauges), media_type=CONTENT_TYPE)

    # ------------------------------ from a request to its answer ------------------------------

    async def _answer(self, request: Request) -> Response:
        self._check_key(request)
        body = await self._read_body(request)
        return await _unless_gone(request, lambda: self._embed(body))

    async def _embed(self, body: bytes) -> Response:
        """What a body asks for. Cancelled when its client goes: what waits for a thread or the model is forgotten."""
        with self.waiting.place():
            asked, texts = await self._in(self._tokenizing, self._read, body)
            ticket = Ticket(await self._tokenize_more(asked, texts))
            self.waiting.add(ticket)
            try:
                vectors = await self._wait(ticket, asked)
            finally:
                self.waiting.withdraw(ticket)
        written = await self._in(self._writing, write_answer, vectors, asked, self.name, ticket.tokens(0))
        return Response(written, media_type="application/json")

    def _check_key(self, request: Request) -> None:
        if self._authorization is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            raise RequestError("Incorrect API key.", 401, "invalid_api_key")

    async def _read_body(self, request: Request) -> bytes:
        """The whole body, if it is small enough, comes fast enough, and not too many others are coming."""
        limit = self.options.max_body_bytes
        too_large = RequestError(f"The body is larger than {limit} bytes: send fewer texts a request.", 413)
        announced = request.headers.get("content-length") or "0"
        if not announced.isdecimal() or not announced.isascii():
            raise RequestError("`content-length` must be the number of bytes of the body.")
        if len(announced) > LONGEST_LENGTH or int(announced) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.options.read_timeout):
                async for part in request.stream():
                    size += len(part)
                    self._bytes_arriving += len(part)
                    if size > limit:
                        raise too_large
                    if self._bytes_arriving > BODIES_AT_ONCE * limit:
                        raise OverloadError(1)
                    parts.append(part)
        except TimeoutError:
            raise RequestError(f"The body did not arrive in {self.options.read_timeout:g} seconds.", 408) from None
        finally:
            self._bytes_arriving -= size
        return b"".join(parts)

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, list[TokenizedText]]:
        """A body and its first texts at once: the way from thread to thread costs as much as a short text."""
        asked = self.reader.read(body)
        return asked, self.reader.tokenize(asked, 0, TEXTS_AT_ONCE)

    async def _tokenize_more(self, asked: EmbeddingRequest, texts: list[TokenizedText]) -> list[TokenizedText]:
        """With the other texts, some at a time: who sends thousands lets others in between, and is refused as soon as
        they are too many."""
        for start in range(len(texts), len(asked.inputs), TEXTS_AT_ONCE):
            self.waiting.check_room(sum(len(text.token_ids) for text in texts))
            texts += await self._in(self._tokenizing, self.reader.tokenize, asked, start, start + TEXTS_AT_ONCE)
        return texts

    async def _wait(self, ticket: Ticket, asked: EmbeddingRequest) -> np.ndarray:
        """The embeddings, when the model has made them."""
        try:
            embeddings = await asyncio.wrap_future(ticket.done)
        except (ModelStoppedError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise RequestError(f"The model failed: {type(error).__name__}.", 500, "model_failed") from error
        vectors = self.encoder.finish(embeddings, asked.dimensions).numpy()
        if not np.isfinite(vectors).all():  # JSON has no word for them
            raise RequestError("The model failed: its embedding holds nan or inf.", 500, "model_failed")
        return vectors

    async def _in(self, thread: ThreadPoolExecutor, function: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)


async def _unless_gone(request: Request, work: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
    """The result of some work, which does not begin or ends when the client goes; its body has been read before."""
    gone = asyncio.ensure_future(_disconnection(request))
    tasks: list[asyncio.Future[Any]] = [gone]
    try:
        for _ in range(TURNS_TO_HEAR):
            await asyncio.sleep(0)
        if gone.done():
            raise ClientDisconnect
        working = asyncio.ensure_future(work())
        tasks.append(working)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # what was begun has left the queue


async def _disconnection(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse(error: RequestError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.body(), error.status, headers)


async def _refuse_route(request: Request, error: Exception) -> Response:
    """An unknown address or method, as OpenAI's clients want to be told."""
    assert isinstance(error, HTTPException)
    return _refuse(RequestError(f"{request.method} {request.url.path}: {error.detail}.", error.status_code))
