"""`llamafactory-embed serve`: embeddings over HTTP, also on a machine without LLaMA-Factory."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from ...hparams.command_line import add_options, read_options
from ...hparams.option import REQUIRED, option
from ...hparams.serving import ServingOptions


@dataclass(frozen=True)
class ServedCheckpoint:
    """What is served, and where it runs."""

    checkpoint: str = option(REQUIRED, "Folder that a training run or an export wrote.", positional=True)
    device: str | None = option(None, "Device of the model; empty: a GPU if there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type that the model computes in; auto: that of its weights."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and the options of the server."""
    add_options(parser, ServedCheckpoint)
    add_options(parser, ServingOptions)


def run(arguments: argparse.Namespace) -> int:
    """Serve; 0 after a stop that was asked for."""
    served = read_options(arguments, ServedCheckpoint)
    options = read_options(arguments, ServingOptions)
    import torch

    from .run import serve

    dtype = None if served.dtype == "auto" else getattr(torch, served.dtype)
    serve(served.checkpoint, options, device=served.device, dtype=dtype)
    return 0
