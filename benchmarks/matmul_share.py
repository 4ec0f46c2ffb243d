"""How much of what this machine can multiply at all reaches the model during a training step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import ModelSize, TripletSizes, make_triplets, save_model
from .processes import Variant, take_turns
from .results_file import Result, ratio, spread, table_of
from .training import StepClock, train_by_recipe, variant, write_dataset


TITLE = "Share of the matmul peak"
CASE = "heavy-tailed lengths"
PLAIN, COMPILED, TURNING = "training step", "training step, torch_compile", "training step, waiting threads turn"
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}  # as in `llamafactory-cli train`


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    rows: int = 16
    steps: int = 6  # the first one warms up
    mean_length: int = 90
    fill: float = 1 / 3
    matmul_size: int = 2048


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """The peak is measured before and after the steps, in the same process."""
    from transformers import AutoTokenizer

    model = save_model(folder / "model", settings.model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = TripletSizes(settings.rows, settings.steps, settings.mean_length, settings.fill)
    triplets = make_triplets(tokenizer, sizes)
    # Every batch has the same lengths, so any of them has the work of all.
    lengths = [len(tokenizer(text)["input_ids"]) for row in triplets[: settings.rows] for text in row.values()]
    data = write_dataset(folder / "data", triplets)
    work = {"operations": count_operations(settings.model, lengths), "matmul_size": settings.matmul_size}

    def step(environment: Mapping[str, str], **options: Any) -> Variant:
        ours = variant("ours", model, data, settings.rows, settings.steps, options=options, **work)
        return dataclasses.replace(ours, function="benchmarks.matmul_share:run", environment=environment)

    runs = take_turns(
        {
            CASE: {
                PLAIN: step(SLEEPING_THREADS),
                COMPILED: step(SLEEPING_THREADS, torch_compile=True),
                TURNING: step({"OMP_WAIT_POLICY": "ACTIVE"}),
            }
        },
        repeats,
    )
    shares = {name: [100 * run["share"] for run in runs if run["variant"] == name] for name in (PLAIN, COMPILED)}
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[
            spread("share of the matmul peak", shares[PLAIN], unit="%", at_least=65.0),
            spread("share of the matmul peak, torch_compile", shares[COMPILED], unit="%", at_least=65.0),
            ratio("time without torch_compile, to that with", runs, CASE, PLAIN, COMPILED, "seconds"),
            ratio("time where threads sleep, to that where they turn", runs, CASE, PLAIN, TURNING, "seconds"),
        ],
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


def count_operations(size: ModelSize, lengths: Sequence[int]) -> int:
    """Floating-point operations of a forward and a backward that any implementation must do: those of the projections
    and of the two products of attention. A backward has two products for each of the forward's. Norms, activations,
    the softmax, the optimizer and what a kernel computes twice to save memory do not count."""
    head_size = size.hidden_size // size.heads
    projections = size.hidden_size * head_size * (2 * size.heads + 2 * size.key_value_heads)  # q, o, k, v
    projections += 3 * size.hidden_size * size.intermediate_size
    attention = 2 * size.hidden_size * sum(length**2 for length in lengths)  # scores, and their product with v
    return 3 * 2 * size.layers * (sum(lengths) * projections + attention)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process: matmuls, training steps, matmuls."""
    clock = StepClock()
    before = matmul_peak(request["matmul_size"])
    train_by_recipe(request, clock)
    peak = max(before, matmul_peak(request["matmul_size"]))
    report = clock.report(request["rows"])
    share = request["operations"] / report["seconds"] / peak
    return report | {"operations": request["operations"], "peak": peak, "share": share}


def matmul_peak(size: int, trials: int = 15) -> float:
    """Operations a second of the fastest of several large fp32 products."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    fastest = float("inf")
    for _ in range(trials):
        start = time.perf_counter()
        torch.matmul(a, b)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
