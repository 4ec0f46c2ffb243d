"""One GradCache step of InfoNCE over a large batch, with `candidate_tile` and with all similarities at once: the same
loss and gradient, and how much memory.

The model is a tiny one, and texts are a few random tokens, so that what is left is the loss.
"""

from __future__ import annotations

import ctypes
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import ModelSize, save_model
from .processes import Variant, take_turns
from .results_file import Result, check_equal, spread, table_of


TITLE = "InfoNCE of up to 65,536 rows, in tiles"
AT_ONCE = "all at once"
MMAP_THRESHOLD = -3  # of `mallopt`


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(
        default_factory=lambda: ModelSize(
            layers=1, hidden_size=32, intermediate_size=64, heads=2, key_value_heads=2, vocabulary=512, longest=32
        )
    )
    rows: tuple[int, ...] = (4096, 16384, 65536)
    largest_at_once: int = 16384
    candidate_tile: int = 2048
    grad_cache_tokens: int = 16384
    tokens: int = 4  # of a text


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Once: the memory hardly varies."""
    model = save_model(folder / "model", settings.model)
    tiled = f"tiles of {settings.candidate_tile}"
    cases: dict[str, dict[str, Variant]] = {}
    for rows in settings.rows:
        tiles = {tiled: settings.candidate_tile}
        if rows <= settings.largest_at_once:
            tiles[AT_ONCE] = 0
        request = dataclasses.asdict(settings) | {"model": str(model), "rows": rows}
        cases[f"{rows:,} rows"] = {
            name: Variant("benchmarks.candidate_tiles:run", request | {"candidate_tile": tile})
            for name, tile in tiles.items()
        }
    runs = take_turns(cases, repeats=1)
    for case in cases:
        check_equal(runs, case)
        check_equal(runs, case, "gradient", tolerance=1e-4)
    largest = [run["peak_mib"] for run in runs if run["case"] == f"{settings.rows[-1]:,} rows"]
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[spread(f"memory of a step of {settings.rows[-1]:,} rows in tiles", largest, unit="MiB")],
        table=table_of(
            runs,
            {
                "peak memory, MiB": lambda median: f"{median('peak_mib'):,.0f}",
                "one matrix of similarities, MiB": lambda median: f"{median('matrix_mib'):,.0f}",
                "loss": lambda median: f"{median('first_loss'):.6f}",
                "length of the gradient": lambda median: f"{median('gradient'):.6f}",
            },
        ),
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process, one step: every chunk is embedded twice, the loss sees all embeddings."""
    import torch
    from transformers import AutoModel

    from llamafactory_embed.hparams.contrastive import ContrastiveOptions
    from llamafactory_embed.hparams.embedding import EmbeddingOptions
    from llamafactory_embed.model.embedding import EmbeddingModel
    from llamafactory_embed.model.embedding_config import EmbeddingConfig
    from llamafactory_embed.model.packed import pack_texts
    from llamafactory_embed.train.embed.grad_cache import cached_backward
    from llamafactory_embed.train.embed.losses.info_nce import info_nce
    from llamafactory_embed.train.embed.losses.rows import EmbeddedRows

    from .memory import PeakMemory

    # Large blocks are given back as soon as they are free; glibc would keep freed tiles in pieces.
    ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, 2**18)
    torch.set_num_threads(1)
    config = EmbeddingConfig.from_options(EmbeddingOptions(), cutoff_len=request["tokens"])
    model = EmbeddingModel(AutoModel.from_pretrained(request["model"]), config)
    options = ContrastiveOptions(num_negatives=0, candidate_tile=request["candidate_tile"] or None)

    def step(rows: int) -> torch.Tensor:
        ids = torch.arange(rows).unsqueeze(1)

        def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
            queries, passages = embeddings.split(rows)
            return info_nce(EmbeddedRows(queries, passages.unsqueeze(1), ids), options).mean()

        texts = random_texts(2 * rows, request["tokens"], model.config.vocab_size)
        chunks = pack_texts(texts, request["grad_cache_tokens"])
        return cached_backward(model, chunks, loss_of, torch.Tensor.backward, device=torch.device("cpu"))

    step(8)  # loads what torch loads late
    model.zero_grad()
    memory, started = PeakMemory(), time.perf_counter()
    loss = step(request["rows"])
    seconds = time.perf_counter() - started
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return {
        "seconds": seconds,
        "peak_mib": memory.above_baseline(),
        "matrix_mib": request["rows"] ** 2 * 4 / 2**20,
        "first_loss": float(loss),
        "gradient": float(torch.stack([each.square().sum() for each in gradients]).sum().sqrt()),
    }


def random_texts(count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Texts of so many tokens, the same ones at every call."""
    import torch

    return torch.randint(vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0)).tolist()
