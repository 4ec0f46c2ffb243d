"""The packed engine against sentence-transformers on torch and on OpenVINO graphs in float32 and int8, on one core.

All sides stand in one process and take turns, each with one thread, and CPU time is what counts: other work on the
machine slows that down little.

Needs an environment with the extra `openvino`, which the developers' environment does not have:

    openvino/bin/python -m benchmarks openvino_encoding
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .encode import TOLERANCE, read_texts, save_checkpoint, short_paragraphs
from .inputs import ModelSize
from .processes import Run, Variant, run_fresh
from .results_file import Result, ratio, table_of


TITLE = "OpenVINO"
CASE = "paragraphs"
OURS = "Encoder, packed"
TORCH, FLOAT32, INT8 = "torch", "OpenVINO float32", "OpenVINO int8"  # of sentence-transformers


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    texts: int = 200
    batch_size: int = 8  # sentence-transformers' best on a CPU, see the benchmark of encoding
    warm_up_texts: int = 16


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Export, which checks the graphs; then time all sides."""
    checkpoint = save_checkpoint(folder, settings.model)
    sizes, cosines = export_graphs(checkpoint, folder)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(short_paragraphs(settings.texts)), "utf-8")
    models = {OURS: checkpoint, TORCH: checkpoint, FLOAT32: folder / FLOAT32, INT8: folder / INT8}
    request = {
        "texts": str(texts),
        "models": {side: str(model) for side, model in models.items()},
        "batch_size": settings.batch_size,
        "warm_up_texts": settings.warm_up_texts,
        "repeats": repeats,
    }
    runs: list[Run] = run_fresh(Variant("benchmarks.openvino_encoding:time_sides", request))["runs"]
    for run in runs:
        run["model_mib"] = sizes[run["variant"]]
    return Result(
        settings=dataclasses.asdict(settings) | {"lowest_cosine_of": cosines},
        runs=runs,
        figures=[
            ratio(
                "speed of OpenVINO float32 over sentence-transformers on torch",
                runs,
                CASE,
                TORCH,
                FLOAT32,
                "cpu_seconds",
            ),
            ratio(
                "speed of OpenVINO int8 over sentence-transformers on torch", runs, CASE, TORCH, INT8, "cpu_seconds"
            ),
            ratio("speed of OpenVINO float32 over Encoder", runs, CASE, OURS, FLOAT32, "cpu_seconds"),
            ratio("size of int8 over float32", runs, CASE, INT8, FLOAT32, "model_mib"),
        ],
        table=table_of(
            runs,
            {
                "texts a CPU second": lambda median: f"{settings.texts / median('cpu_seconds'):.0f}",
                "CPU seconds": lambda median: f"{median('cpu_seconds'):.2f}",
                "files of the model, MiB": lambda median: f"{median('model_mib'):.1f}",
            },
        ),
    )


def export_graphs(checkpoint: Path, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Write both graphs; sizes of all sides' weights in MiB, and what the checks of the exports found."""
    from llamafactory_embed.export.export import quiet_loaders
    from llamafactory_embed.export.openvino.export import export_openvino
    from llamafactory_embed.export.options import ExportOptions

    quiet_loaders()
    torch_size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2**20
    sizes, cosines = {OURS: torch_size, TORCH: torch_size}, {}
    graphs = {FLOAT32: ExportOptions(dtype="float32"), INT8: ExportOptions(dtype="int8")}
    for side, options in graphs.items():
        exported = export_openvino(checkpoint, folder / side, options)
        sizes[side], cosines[side] = exported.mebibytes, exported.lowest_cosine
    return sizes, cosines


def time_sides(request: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of every side in turns, every other time in reverse order."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    texts = read_texts(request)
    sides = {side: open_side(side, model, request["batch_size"]) for side, model in request["models"].items()}
    for encode in sides.values():
        encode(texts[: request["warm_up_texts"]])
    runs: list[Run] = []
    vectors: dict[str, Any] = {}
    for repeat in range(request["repeats"]):
        for side in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
            start = time.process_time()
            vectors[side] = sides[side](texts)
            seconds = time.process_time() - start
            runs.append({"case": CASE, "variant": side, "repeat": repeat, "cpu_seconds": seconds})
    difference = float(np.abs(vectors[OURS] - vectors[TORCH]).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"The embeddings of the sides on torch differ by {difference:.2g}, no comparison is fair.")
    return {"runs": runs}


def open_side(side: str, model: str, batch_size: int) -> Callable[[list[str]], Any]:
    """What embeds texts."""
    if side == OURS:
        from llamafactory_embed import Encoder

        encoder = Encoder(model, device="cpu")
        return encoder.encode
    from sentence_transformers import SentenceTransformer

    on_torch = side == TORCH
    options: dict[str, Any] = {} if on_torch else {"model_kwargs": {"ov_config": {"INFERENCE_NUM_THREADS": 1}}}
    loaded = SentenceTransformer(model, device="cpu", backend="torch" if on_torch else "openvino", **options)
    return lambda texts: loaded.encode(texts, batch_size=batch_size, normalize_embeddings=True)
