"""Several copies of our server behind one address, by Ray Serve: one for each GPU, or more.

    pip install 'ray[serve]'
    CHECKPOINT=saves/quickstart serve run examples.serve.ray_serve:app

Ray starts and watches the copies and deals requests out to them; each one batches what it gets (docs/serve.md).
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from llamafactory_embed import Encoder
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.serve.embeddings.app import EmbeddingServer


@serve.deployment(
    num_replicas=int(os.environ.get("COPIES", "1")),
    max_ongoing_requests=256,  # how many a copy may batch; Ray's default of 5 would leave its forwards empty
    ray_actor_options={"num_gpus": float(os.environ.get("GPUS_PER_COPY", "0"))},
)
class Embeddings:
    """A copy of the model with its own queue."""

    def __init__(self, checkpoint: str) -> None:
        server = EmbeddingServer(Encoder(checkpoint), "embedder", ServingOptions(), os.environ.get("API_KEY") or None)
        server.worker.start()  # Ray calls the handlers itself, and ends the process, so there is no lifespan
        self.server = server
        self.handlers: dict[str, Any] = {
            "/v1/embeddings": server.embeddings,
            "/v1/models": server.models,
            "/health": server.health,
            "/metrics": server.show_metrics,
        }

    async def __call__(self, request: Request) -> Response:
        handler = self.handlers.get(request.url.path)
        return Response(status_code=404) if handler is None else await handler(request)

    def check_health(self) -> None:
        """Ray replaces a copy whose worker has ended."""
        if not self.server.worker.is_alive():
            raise RuntimeError("The worker has ended.")


app = Embeddings.bind(os.environ.get("CHECKPOINT", "saves/quickstart"))
