"""The packed engine against sentence-transformers on torch and on OpenVINO graphs in float32 and int8, on one core.

Every side has one thread, and its CPU time is what counts: other work on the machine slows that down little.

Needs an environment with the extra `openvino`, which the developers' environment does not have:

    openvino/bin/python -m benchmarks openvino_encoding
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import encode
from .encode import check_same_embeddings, save_checkpoint, short_paragraphs, time_encoding
from .inputs import ModelSize
from .processes import Variant, take_turns
from .results_file import Result, ratio, table_of


TITLE = "OpenVINO"
CASE = "paragraphs"
OURS = "Encoder, packed"
TORCH, FLOAT32, INT8 = "torch", "OpenVINO float32", "OpenVINO int8"  # of sentence-transformers


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    texts: int = 300
    batch_size: int = 8  # sentence-transformers' best on a CPU, see the benchmark of encoding
    warm_up_texts: int = 16


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Export, which checks the graphs; then all sides in turns."""
    checkpoint = save_checkpoint(folder, settings.model)
    sizes, cosines = export_graphs(checkpoint, folder)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(short_paragraphs(settings.texts)), "utf-8")
    request = {"texts": str(texts), "warm_up_texts": settings.warm_up_texts}
    variants = {OURS: Variant(f"{__name__}:ours", request | _paths(checkpoint, OURS, folder))}
    for side, model in {TORCH: checkpoint, FLOAT32: folder / FLOAT32, INT8: folder / INT8}.items():
        how = {"backend": "torch" if side == TORCH else "openvino", "batch_size": settings.batch_size}
        variants[side] = Variant(f"{__name__}:sentence_transformers", request | _paths(model, side, folder) | how)
    runs = take_turns({CASE: variants}, repeats)
    check_same_embeddings(folder / f"{OURS}.npy", folder / f"{TORCH}.npy")
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
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
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


def ours(request: dict[str, Any]) -> dict[str, Any]:
    """One process of ours, with one thread."""
    import torch

    torch.set_num_threads(1)
    return encode.ours(request)


def sentence_transformers(request: dict[str, Any]) -> dict[str, Any]:
    """One process of sentence-transformers on one of its backends, with one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    size, backend = request["batch_size"], request["backend"]
    one_thread = {"ov_config": {"INFERENCE_NUM_THREADS": 1}} if backend == "openvino" else {}
    model = SentenceTransformer(request["checkpoint"], device="cpu", backend=backend, model_kwargs=one_thread)
    return time_encoding(request, lambda texts: model.encode(texts, batch_size=size, normalize_embeddings=True))


def _paths(model: Path, side: str, folder: Path) -> dict[str, str]:
    return {"checkpoint": str(model), "output": str(folder / f"{side}.npy")}
