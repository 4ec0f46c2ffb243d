"""The bodies of `/v1/embeddings`: OpenAI's fields, with Cohere's `input_type`, Jina's `task`, and `prompt`."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.tokenization import TokenizedText
from ...encoder.encoder import Encoder, Role
from ...hparams.suggestion import suggest


# What other services call the two roles.
ROLES: dict[str, Role] = {
    **dict.fromkeys(("query", "search_query", "retrieval.query"), "query"),
    **dict.fromkeys(("document", "passage", "search_document", "retrieval.passage"), "document"),
}
ENCODINGS = ("float", "base64")


class RequestError(Exception):
    """A request that is refused, as OpenAI's clients want to be told."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, param: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.retry_after = message, status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class EmbeddingRequest:
    """What a client wants."""

    inputs: Sequence[str] | Sequence[list[int]]
    """Texts, or token ids of texts."""
    role: Role
    task: str | None
    prompt: str | None
    dimensions: int | None
    encoding: str
    """One of `ENCODINGS`."""

    @property
    def is_text(self) -> bool:
        return isinstance(self.inputs[0], str)


class RequestReader:
    """Reads bodies for one model."""

    def __init__(self, encoder: Encoder, name: str, query_task: str | None, most_texts: int) -> None:
        tasks = list(encoder.config.instructions)
        if query_task is not None and query_task not in tasks:
            trained = ", ".join(tasks) or "no named task"
            raise ValueError(
                f"`query_task: {query_task}`: this model was trained on {trained}{suggest(query_task, tasks)}"
            )
        self.encoder = encoder
        self.name = name
        self.query_task = query_task if query_task is not None or len(tasks) != 1 else tasks[0]
        self.most_texts = most_texts
        self.vocabulary = encoder.model.decoder.get_input_embeddings().weight.shape[0]

    def read(self, body: bytes) -> EmbeddingRequest:
        """Check a body; whatever is wrong with it is a `RequestError`."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError("The body is not JSON.") from error
        if not isinstance(fields, dict):
            raise RequestError("The body must be a JSON object.")
        model = fields.get("model")
        if model is not None and model != self.name:
            raise RequestError(
                f"This server has no model {model!r}, only {self.name!r}.", 404, "model_not_found", "model"
            )
        encoding = fields.get("encoding_format") or "float"
        if encoding not in ENCODINGS:
            raise RequestError(
                f"`encoding_format` must be float or base64, not {encoding!r}.", param="encoding_format"
            )
        role, task, prompt = self._read_purpose(fields)
        inputs = self._read_inputs(fields.get("input"))
        if not isinstance(inputs[0], str) and (task or prompt):
            raise RequestError(
                "Token ids are embedded as they are, no instruction is written before them: send text, or leave out "
                "`input_type`, `task` and `prompt`.",
                param="input",
            )
        return EmbeddingRequest(inputs, role, task, prompt, self._read_dimensions(fields.get("dimensions")), encoding)

    def tokenize(self, request: EmbeddingRequest, start: int, end: int) -> list[TokenizedText]:
        """What the model reads of some of the inputs."""
        inputs: Sequence[Any] = request.inputs[start:end]
        if not request.is_text:
            return [TokenizedText(token_ids) for token_ids in inputs]
        try:
            return self.encoder.tokenize(
                inputs, task=request.task, prompt=request.prompt, role=request.role, first_number=start
            )
        except ValueError as error:
            raise RequestError(str(error), param="input") from error

    def _read_inputs(self, given: Any) -> Sequence[Any]:
        if isinstance(given, str):
            return [given]
        if not isinstance(given, list) or not given:
            raise RequestError("`input` must be a text, texts, token ids or lists of token ids.", param="input")
        if _is_token_ids(given):
            given = [given]
        if len(given) > self.most_texts:
            raise RequestError(f"`input` holds {len(given)} texts, more than {self.most_texts}.", param="input")
        is_text = isinstance(given[0], str)
        for number, each in enumerate(given):
            if not (isinstance(each, str) if is_text else _is_token_ids(each)):
                wanted = "texts, as the first one is" if is_text else "texts or lists of token ids"
                raise RequestError(f"`input` must be {wanted}; item {number} is not.", param="input")
            if not is_text:
                self._check_token_ids(number, each)
        return given

    def _check_token_ids(self, number: int, token_ids: list[int]) -> None:
        config = self.encoder.config
        longest = max(config.query_max_length, config.document_max_length)
        if len(token_ids) > longest:
            raise RequestError(
                f"Item {number} of `input` has {len(token_ids)} token ids, more than the {longest} of the model: send "
                "text, which is shortened as in training.",
                param="input",
            )
        if min(token_ids) < 0 or max(token_ids) >= self.vocabulary:
            raise RequestError(
                f"Item {number} of `input` holds token ids that are not between 0 and {self.vocabulary - 1}: they are "
                "those of another tokenizer.",
                param="input",
            )

    def _read_purpose(self, fields: Mapping[str, Any]) -> tuple[Role, str | None, str | None]:
        """Role, task and prompt, as `Encoder.encode` takes them."""
        instructions = self.encoder.config.instructions
        role: Role | None = None
        task: str | None = None
        for param in ("input_type", "task"):
            value = fields.get(param)
            if value is None:
                continue
            if isinstance(value, str) and value in instructions:
                task = value
            elif isinstance(value, str) and value in ROLES:
                role = ROLES[value]
            else:
                known = [*instructions, "query", "document"]
                raise RequestError(
                    f"`{param}` must be one of {', '.join(known)}, not {value!r}{suggest(value, known)}", param=param
                )
        prompt = fields.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise RequestError("`prompt` must be an instruction, a text.", param="prompt")
        if prompt is not None and task is not None:
            raise RequestError(
                "Give a `task`, whose instruction was trained, or a `prompt`, not both.", param="prompt"
            )
        role = role or ("query" if task is not None or prompt is not None else "document")
        if role == "query" and task is None and prompt is None:
            task = self.query_task
        return role, task, prompt

    def _read_dimensions(self, dimensions: Any) -> int | None:
        if dimensions is None:
            return None
        if not isinstance(dimensions, int) or isinstance(dimensions, bool):
            raise RequestError("`dimensions` must be a whole number.", param="dimensions")
        try:
            return self.encoder.check_dimensions(dimensions)
        except ValueError as error:
            raise RequestError(str(error), param="dimensions") from error


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def write_answer(vectors: np.ndarray, request: EmbeddingRequest, name: str, tokens: int) -> bytes:
    """The body of the answer: vectors [N, d] in the order of the request's inputs."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = f'{{"object": "list", "model": {json.dumps(name)}, "usage": {json.dumps(usage)}, "data": ['
    # Vector by vector, so that the event loop gets its turn while a large answer is written.
    items = (
        f'{{"object": "embedding", "index": {index}, "embedding": {written}}}'
        for index, written in enumerate(_write_vectors(vectors, request.encoding))
    )
    return f"{head}{', '.join(items)}]}}".encode()


def _write_vectors(vectors: np.ndarray, encoding: str) -> Iterator[str]:
    for vector in vectors:
        if encoding == "base64":
            yield f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
        else:
            # Nine digits are what a float32 holds; Python would write, and search for, seventeen.
            yield f"[{', '.join(['%.9g'] * len(vector)) % tuple(vector.tolist())}]"
