"""Serve a checkpoint until the process is told to stop."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...encoder.encoder import Encoder
from ...hparams.serving import ServingOptions


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments


NEEDED = ("starlette", "uvicorn")


def require_server(packages: Sequence[str] = NEEDED) -> None:
    """What LLaMA-Factory brings along; a machine that only embeds may lack it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"Serving needs {' and '.join(missing)}: pip install {' '.join(missing)}.")


def serve(
    checkpoint: str | Path,
    options: ServingOptions,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Load the checkpoint, answer requests, and return after SIGTERM or SIGINT, when everything that was taken has
    been answered."""
    require_server()
    # uvicorn drains at the signal, and raises it again when it has; before it starts and after it, nothing is lost.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import uvicorn

    from .app import EmbeddingServer

    overrides = {} if options.batch_tokens is None else {"max_tokens_per_batch": options.batch_tokens}
    encoder = Encoder(checkpoint, device=device, dtype=dtype, overrides=overrides)
    encoder.config.require_one_vector("`/v1/embeddings`")
    name = options.api_model_name or os.environ.get("API_MODEL_NAME") or Path(checkpoint).resolve().name
    host = options.api_host or os.environ.get("API_HOST", "0.0.0.0")
    port = int(os.environ.get("API_PORT", "8000")) if options.api_port is None else options.api_port
    server = EmbeddingServer(encoder, name, options, os.environ.get("API_KEY") or None)

    print(
        f"Serving {name} ({encoder.model.device}, {encoder.dimension} dimensions) at http://{host}:{port}", flush=True
    )
    uvicorn.run(
        server.make_app(),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=int(options.drain_timeout),
    )


def serve_recipe(model_args: ModelArguments, finetuning_args: FinetuningArguments) -> None:
    """`llamafactory-cli api` for the checkpoint that a recipe names."""
    from ...export.from_recipe import check_checkpoint_names
    from ...host.export import find_checkpoint

    checkpoint = find_checkpoint(model_args)
    check_checkpoint_names(checkpoint, model_args)
    dtype = None if model_args.infer_dtype == "auto" else getattr(torch, model_args.infer_dtype)
    serve(checkpoint, finetuning_args.serving_options, dtype=dtype)
