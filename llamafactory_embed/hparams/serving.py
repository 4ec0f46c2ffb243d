"""How an embedder answers over HTTP: in a recipe of `llamafactory-cli api`, or after `llamafactory-embed serve`."""

from __future__ import annotations

from dataclasses import dataclass

from .option import option


@dataclass(frozen=True)
class ServingOptions:
    """Address, batches and limits of the server of embeddings. The API key is no option: it is read from the variable
    `API_KEY`, so that it stands in no file and in no list of processes."""

    api_host: str | None = option(
        None, "Address to listen on; empty: the variable `API_HOST`, or 0.0.0.0, every address of the machine."
    )
    api_port: int | None = option(
        None, "Port to listen on; empty: the variable `API_PORT`, or 8000.", minimum=0, maximum=65535
    )
    api_model_name: str | None = option(
        None,
        "Name of the model, which a request may give as `model`; empty: the variable `API_MODEL_NAME`, or the name of "
        "the checkpoint's folder.",
    )
    query_task: str | None = option(
        None,
        "Task whose instruction is written before a query that names no task; empty: the only task, or no instruction "
        "if there are several.",
        metavar="TASK",
    )
    batch_tokens: int | None = option(
        None,
        "Most tokens of one forward; empty: the checkpoint's `max_tokens_per_batch`, or 1024 on a CPU and 16384 "
        "elsewhere.",
        minimum=1,
    )
    batch_requests: int | None = option(
        None, "Most requests that share a forward; 1: every request alone; empty: as many as fit.", minimum=1
    )
    max_body_bytes: int = option(8 * 2**20, "Largest body of a request.", minimum=1)
    max_texts_per_request: int = option(2048, "Most texts of a request.", minimum=1)
    max_waiting_requests: int = option(1024, "Most requests that wait; what comes then is answered 429.", minimum=1)
    max_waiting_tokens: int = option(
        262144,
        "Most tokens that wait; what comes then is answered 429. A larger request is taken when nothing waits.",
        minimum=1,
    )
    read_timeout: float = option(30.0, "Seconds in which the body of a request must have arrived.", minimum=0.1)
    drain_timeout: float = option(
        30.0, "Seconds in which a server that was told to stop (SIGTERM) finishes what it has taken.", minimum=1
    )
