"""A server of embeddings in OpenAI's format, as a client sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np


OURS = "llamafactory-embed"  # who owns the models of our own server


@dataclass(frozen=True)
class Answer:
    """Vectors [N, d] in the order of the texts, and how many tokens the server says it has read."""

    vectors: np.ndarray
    tokens: int | None


class ServerClient:
    """Asks one model of a server. `http` has the server's address as its base."""

    def __init__(self, http: httpx.Client, model: str | None = None) -> None:
        self.http = http
        models = self._list_models()
        names = [str(each.get("id")) for each in models]
        if model is not None and names and model not in names:
            raise ValueError(
                f"The server has no model {model!r}, only {', '.join(names)}: name one of them (`--model`)."
            )
        self.model = model or (names[0] if names else "model")
        self.is_ours = any(each.get("owned_by") == OURS for each in models)
        """Whether the server writes prompts itself, when it is told what a text is for."""

    @classmethod
    def open(cls, url: str, model: str | None, key_variable: str, timeout: float) -> ServerClient:
        """A client of the server at that address, with or without `/v1` at its end."""
        address = url.rstrip("/").removesuffix("/v1")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"`--server {url}` must be an address such as http://localhost:8000.")
        key = os.environ.get(key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return cls(httpx.Client(base_url=address, headers=headers, timeout=timeout), model)

    def embed(self, texts: Sequence[str], fields: Mapping[str, Any]) -> Answer:
        """Send texts in one request; `fields` go with them."""
        body = {"model": self.model, "input": list(texts), "encoding_format": "float", **fields}
        answer = self._ask("POST", "/v1/embeddings", body)
        try:
            items = sorted(answer["data"], key=lambda item: item["index"])
            vectors = np.array([item["embedding"] for item in items], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.http.base_url} does not answer as OpenAI's API does: {error!r}.") from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"{self.http.base_url} answers {len(items)} vectors to {len(texts)} texts.")
        usage = answer.get("usage") or {}
        return Answer(vectors, usage.get("prompt_tokens"))

    def _list_models(self) -> list[dict[str, Any]]:
        """Those of `/v1/models`; none where a server has no such list."""
        try:
            answer = self._ask("GET", "/v1/models")
        except ServerRefusalError as refusal:
            if refusal.status == 404:
                return []
            raise
        return [each for each in answer.get("data", []) if isinstance(each, dict)]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self.http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ValueError(f"{self.http.base_url} does not answer: {error}.") from error
        if response.status_code != 200:
            raise ServerRefusalError(str(self.http.base_url), response)
        try:
            answer = response.json()
        except ValueError as error:
            raise ValueError(f"{self.http.base_url}{path} answers something else than JSON.") from error
        if not isinstance(answer, dict):
            raise ValueError(f"{self.http.base_url}{path} does not answer as OpenAI's API does.")
        return answer


class ServerRefusalError(ValueError):
    """The server has refused a request."""

    def __init__(self, address: str, response: httpx.Response) -> None:
        super().__init__(f"{address} refuses: {response.status_code}, {' '.join(response.text.split())[:300]}.")
        self.status = response.status_code
