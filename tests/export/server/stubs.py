"""A server that is written against transformers alone, and makes one mistake if told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer


LIMIT = 150  # tokens that the checkpoints of these tests read


def mean(states: Tensor) -> Tensor:
    return states.mean(0)


@dataclass
class StubServer:
    """Texts come with their prompt; the answer is the mean of bidirectional states, of unit length."""

    folder: Path
    bidirectional: bool = True
    pool: Callable[[Tensor], Tensor] = mean
    rewrite: Callable[[str], str] = lambda text: text
    closing: tuple[int, ...] = ()
    opening: bool = True
    limit: int = LIMIT
    keep: Callable[[list[int], int], list[int]] = lambda ids, room: ids[:room]
    unit_length: bool = True
    finish: Callable[[Tensor], Tensor] = lambda vectors: vectors
    pads: bool = False
    dtype: torch.dtype = torch.float32
    refuses_long: bool = False
    lists_models: bool = True

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        config = AutoConfig.from_pretrained(self.folder)
        config.is_causal = not self.bidirectional
        self.model = AutoModel.from_pretrained(self.folder, config=config, dtype=self.dtype).eval()

    def app(self) -> Starlette:
        routes = [Route("/v1/embeddings", self.embeddings, methods=["POST"])]
        if self.lists_models:
            routes.append(Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "stub"}]})))
        return Starlette(routes=routes)

    async def embeddings(self, request: Request) -> JSONResponse:
        texts: list[str] = (await request.json())["input"]
        rows = [self.tokens(self.rewrite(text)) for text in texts]
        if self.refuses_long and max(map(len, rows)) > self.limit:
            return JSONResponse({"error": {"message": "too long"}}, 400)
        longest = max(map(len, rows))
        with torch.no_grad():
            vectors = torch.stack([self.pool(self.states(row, longest)) for row in rows]).float()
        if self.unit_length:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        data = [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(self.finish(vectors))]
        usage: dict[str, Any] = {"prompt_tokens": sum(map(len, rows))}
        return JSONResponse({"data": data, "usage": usage})

    def states(self, row: Sequence[int], longest: int) -> Tensor:
        if self.pads:
            row = [*row, *[self.tokenizer.pad_token_id] * (longest - len(row))]
        return self.model(torch.tensor([row])).last_hidden_state[0]

    def tokens(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        opening = [self.tokenizer.bos_token_id] if self.opening else []
        room = 10**6 if self.refuses_long else self.limit - len(opening) - len(self.closing)
        return [*opening, *self.keep(ids, room), *self.closing]
