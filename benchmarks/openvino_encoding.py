"""The packed engine against sentence-transformers on torch and on OpenVINO graphs in float32 and int8, on a CPU.

Needs an environment with the extra `openvino`, which the developers' environment does not have:

    openvino/bin/python -m benchmarks openvino_encoding
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .encode import check_same_embeddings, read_texts, save_checkpoint, short_paragraphs, time_encoding
from .inputs import ModelSize
from .processes import Variant, run_fresh, take_turns
from .results_file import Result, ratio, table_of


TITLE = "OpenVINO"
CASE = "paragraphs"
OURS = "Encoder, packed"
TORCH, FLOAT32, INT8 = "torch", "OpenVINO float32", "OpenVINO int8"  # of sentence-transformers


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    texts: int = 1000
    batch_sizes: tuple[int, ...] = (8, 32)  # of which each side of sentence-transformers gets its best
    texts_to_choose_by: int = 250
    warm_up_texts: int = 50


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Export, which checks the graphs; choose batch sizes; then all sides in turns."""
    checkpoint = save_checkpoint(folder, settings.model)
    sizes, cosines = export_graphs(checkpoint, folder)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(short_paragraphs(settings.texts)), "utf-8")
    request = {"texts": str(texts), "warm_up_texts": settings.warm_up_texts}
    variants = {OURS: Variant("benchmarks.encode:ours", request | _paths(checkpoint, OURS, folder))}
    chosen = {}
    for side, model in {TORCH: checkpoint, FLOAT32: folder / FLOAT32, INT8: folder / INT8}.items():
        asked = request | _paths(model, side, folder) | {"backend": "torch" if side == TORCH else "openvino"}
        choice = {"batch_sizes": settings.batch_sizes, "count": settings.texts_to_choose_by}
        seconds = run_fresh(Variant("benchmarks.openvino_encoding:time_batch_sizes", asked | choice))
        chosen[side] = int(min(seconds, key=lambda size: seconds[size]))
        asked["batch_size"] = chosen[side]
        variants[side] = Variant("benchmarks.openvino_encoding:sentence_transformers", asked)
    runs = take_turns({CASE: variants}, repeats)
    check_same_embeddings(folder / f"{OURS}.npy", folder / f"{TORCH}.npy")
    for run in runs:
        run["model_mib"] = sizes[run["variant"]]
    return Result(
        settings=dataclasses.asdict(settings) | {"batch_size_of": chosen, "lowest_cosine_of": cosines},
        runs=runs,
        figures=[
            ratio(
                "speed of OpenVINO float32 over sentence-transformers on torch", runs, CASE, TORCH, FLOAT32, "seconds"
            ),
            ratio("speed of OpenVINO int8 over sentence-transformers on torch", runs, CASE, TORCH, INT8, "seconds"),
            ratio("speed of OpenVINO float32 over Encoder", runs, CASE, OURS, FLOAT32, "seconds"),
            ratio("size of int8 over float32", runs, CASE, INT8, FLOAT32, "model_mib"),
        ],
        table=table_of(
            runs,
            {
                "texts/s": lambda median: f"{settings.texts / median('seconds'):.0f}",
                "seconds": lambda median: f"{median('seconds'):.2f}",
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


def sentence_transformers(request: dict[str, Any]) -> dict[str, Any]:
    """One process at a given batch size."""
    model, size = _load(request), request["batch_size"]
    return time_encoding(request, lambda texts: model.encode(texts, batch_size=size, normalize_embeddings=True))


def time_batch_sizes(request: dict[str, Any]) -> dict[str, float]:
    """Seconds of each batch size on some of the texts."""
    model, texts = _load(request), read_texts(request)[: request["count"]]
    model.encode(texts[: request["warm_up_texts"]])
    seconds = {}
    for size in request["batch_sizes"]:
        start = time.perf_counter()
        model.encode(texts, batch_size=size, normalize_embeddings=True)
        seconds[str(size)] = time.perf_counter() - start
    return seconds


def _load(request: dict[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(request["checkpoint"], device="cpu", backend=request["backend"])


def _paths(model: Path, side: str, folder: Path) -> dict[str, str]:
    return {"checkpoint": str(model), "output": str(folder / f"{side}.npy")}
