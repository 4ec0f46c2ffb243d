"""How much of what this machine can multiply at all reaches the model during a training step, and how much would
if a step were nothing but its products, in their own shapes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .inputs import ModelSize, TripletSizes, make_triplets, save_model
from .processes import Variant, take_turns
from .results_file import Result, ratio, spread, table_of
from .training import StepClock, train_by_recipe, variant, write_dataset


TITLE = "Share of the matmul peak"
MODELS = {  # hidden and intermediate sizes of models that people train; fewer layers, which are all alike
    "384 wide": ModelSize(),
    "576 wide, as SmolLM2-135M": ModelSize(
        layers=4, hidden_size=576, intermediate_size=1536, heads=9, key_value_heads=3
    ),
    "1,024 wide, as Qwen3-0.6B": ModelSize(
        layers=2, hidden_size=1024, intermediate_size=3072, heads=16, key_value_heads=8
    ),
}
AIM = 65.0  # %
PLAIN, COMPILED, TURNING = "training step", "training step, torch_compile", "training step, waiting threads turn"
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}  # as in `llamafactory-cli train`


@dataclass(frozen=True)
class Settings:
    models: Mapping[str, ModelSize] = field(default_factory=MODELS.copy)
    rows: int = 16
    steps: int = 6  # the first one warms up
    mean_length: int = 90
    fill: float = 1 / 3
    matmul_size: int = 2048


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """The peak is measured between the steps, in the same process."""
    cases = {
        case: variants_of(size, settings, folder / str(size.hidden_size)) for case, size in settings.models.items()
    }
    runs = take_turns(cases, repeats)
    figures = []
    for case in cases:
        for name, words in ((PLAIN, ""), (COMPILED, ", torch_compile")):
            shares = [100 * run["share"] for run in runs if (run["case"], run["variant"]) == (case, name)]
            figures.append(spread(f"{case}: share of the matmul peak{words}", shares, unit="%", at_least=AIM))
        alone = [100 * run["products_alone"] for run in runs if run["case"] == case]
        figures.append(spread(f"{case}: share of the products alone, in the shapes of the step", alone, unit="%"))
        for words, other in (
            ("time without torch_compile, to that with", COMPILED),
            ("time where threads sleep, to that where they turn", TURNING),
        ):
            figures.append(ratio(f"{case}: {words}", runs, case, PLAIN, other, "seconds"))
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=figures,
        table=table_of(
            runs,
            {
                "GFLOP a step": lambda median: f"{median('operations') / 1e9:.0f}",
                "seconds a step": lambda median: f"{median('seconds'):.2f}",
                "GFLOP/s, step": lambda median: f"{median('operations') / median('seconds') / 1e9:.0f}",
                "GFLOP/s, matmul": lambda median: f"{median('peak') / 1e9:.0f}",
                "loss of step 1": lambda median: f"{median('first_loss'):.6f}",
            },
        ),
    )


def variants_of(size: ModelSize, settings: Settings, folder: Path) -> dict[str, Variant]:
    """Steps of a model of this size on heavy-tailed lengths."""
    from transformers import AutoTokenizer

    folder.mkdir()
    model = save_model(folder / "model", size)
    tokenizer = AutoTokenizer.from_pretrained(model)
    triplets = make_triplets(
        tokenizer, TripletSizes(settings.rows, settings.steps, settings.mean_length, settings.fill)
    )
    # Every batch has the same lengths, so any of them has the work of all.
    lengths = [len(tokenizer(text)["input_ids"]) for row in triplets[: settings.rows] for text in row.values()]
    data = write_dataset(folder / "data", triplets)
    work = {
        "operations": count_operations(size, lengths),
        "matmul_size": settings.matmul_size,
        "projections": projections(size),
    }

    def step(environment: Mapping[str, str], **options: Any) -> Variant:
        options = {"optim": "adamw_torch_fused", **options}  # as recipes have it by default
        ours = variant("ours", model, data, settings.rows, settings.steps, options=options, **work)
        return dataclasses.replace(ours, function="benchmarks.matmul_share:run", environment=environment)

    return {
        PLAIN: step(SLEEPING_THREADS),
        COMPILED: step(SLEEPING_THREADS, torch_compile=True),
        TURNING: step({"OMP_WAIT_POLICY": "ACTIVE"}),
    }


def count_operations(size: ModelSize, lengths: Sequence[int]) -> int:
    """Floating-point operations of a forward and a backward that any implementation must do: those of the projections
    and of the two products of attention. A backward has two products for each of the forward's. Norms, activations,
    the softmax, the optimizer and what a kernel computes twice to save memory do not count."""
    weights = sum(inputs * outputs for inputs, outputs in projections(size))
    attention = 2 * size.hidden_size * sum(length**2 for length in lengths)  # scores, and their product with v
    return 3 * 2 * size.layers * (sum(lengths) * weights + attention)


def projections(size: ModelSize) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear map of a layer."""
    keys = size.key_value_heads * (size.hidden_size // size.heads)
    query, key, value, out = ((size.hidden_size, width) for width in (size.hidden_size, keys, keys, size.hidden_size))
    gate = up = (size.hidden_size, size.intermediate_size)
    return [query, key, value, out, gate, up, (size.intermediate_size, size.hidden_size)]


class StepsBetweenProducts(StepClock):
    """Times large products before the first step and after each one, outside of the steps: a shared machine is faster
    and slower within seconds, so that a step is compared with the products on both its sides."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.peaks: list[float] = []
        self.starts: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self._measure_products()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end(*args, **kwargs)
        self._measure_products()

    def _measure_products(self) -> None:
        self.peaks.append(matmul_peak(self.size))
        self.starts.append(time.perf_counter())

    def report(self, rows: int, operations: int) -> dict[str, Any]:
        """Medians over the steps but the first, which warms up."""
        seconds = [end - start for start, end in zip(self.starts, self.step_ends, strict=False)][1:]
        peaks = [(before + after) / 2 for before, after in pairwise(self.peaks)][1:]
        shares = [operations / took / peak for took, peak in zip(seconds, peaks, strict=True)]
        measured = {
            "seconds": seconds,
            "samples_per_second": [rows / took for took in seconds],
            "peak": peaks,
            "share": shares,
        }
        medians = {name: statistics.median(values) for name, values in measured.items()}
        return super().report(rows) | medians | {"operations": operations}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process: matmuls and training steps in turns."""
    clock = StepsBetweenProducts(request["matmul_size"])
    train_by_recipe(request, clock)
    alone = products_alone(request["projections"])
    share = alone / ((clock.peaks[-1] + matmul_peak(request["matmul_size"])) / 2)
    return clock.report(request["rows"], request["operations"]) | {"products_alone": share}


def products_alone(projections: Sequence[Sequence[int]], tokens: int = 4096, trials: int = 5) -> float:
    """Operations a second of the products of a layer, forward and backward, in the fastest of several rounds."""
    import torch

    maps = [
        (torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs))
        for inputs, outputs in projections
    ]
    fastest = float("inf")
    for _ in range(trials):
        start = time.perf_counter()
        for x, weight, gradient in maps:
            torch.matmul(x, weight.T)
            torch.matmul(gradient, weight)
            torch.matmul(gradient.T, x)
        fastest = min(fastest, time.perf_counter() - start)
    return 3 * 2 * tokens * sum(inputs * outputs for inputs, outputs in projections) / fastest


def matmul_peak(size: int, trials: int = 5) -> float:
    """Operations a second of the fastest of several large fp32 products."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    fastest = float("inf")
    for _ in range(trials):
        start = time.perf_counter()
        torch.matmul(a, b)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
