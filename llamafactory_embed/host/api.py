"""Seam: `llamafactory-cli api`. An embedder answers with embeddings; everything else chats as the host lets it."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from ..hparams.serving import ServingOptions
from . import contract
from .export import is_embedder


SERVER = "llamafactory_embed.serve.embeddings.run"  # by name: `serve` may import `host`, not the reverse


def apply(app: Any) -> None:
    """Decide by the recipe, or by the folder that it names, which server starts."""
    import llamafactory.hparams as host_hparams

    host_run_api = contract.attribute(app, "run_api")
    get_infer_args = contract.attribute(host_hparams, "get_infer_args")
    contract.check_signature(host_run_api)
    contract.check_signature(get_infer_args, "args")

    def run_api() -> None:
        model_args, _, finetuning_args, _ = get_infer_args()
        if is_embedder(model_args, finetuning_args):
            importlib.import_module(SERVER).serve_recipe(model_args, finetuning_args)
            return
        refuse_serving_options(finetuning_args.serving_options)
        host_run_api()

    app.run_api = run_api


def refuse_serving_options(options: ServingOptions) -> None:
    """The host's own server reads its address from the environment, and has none of the limits."""
    for field in dataclasses.fields(ServingOptions):
        if getattr(options, field.name) != field.default:
            raise ValueError(
                f"`{field.name}` is an option of the server of embeddings, and this model chats: leave it out "
                "(`API_HOST`, `API_PORT` and `API_MODEL_NAME` are environment variables of LLaMA-Factory's server)."
            )
