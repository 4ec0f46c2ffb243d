"""`python -m benchmarks [names…]`: measure, write `benchmarks/results/*.json` and the tables of docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .report import write_page
from .results_file import save


# A benchmark is a module with `TITLE`, `Settings` and `measure(settings, repeats, folder) -> Result`.
BENCHMARKS = (
    "start_cost",
    "packed_forward",
    "contrastive_vs_sentence_transformers",
    "grad_cache",
    "encode",
    "matmul_share",
    "ddm_step",
    "mining",
    "sampling_speed",
    "serving",
)
SLOW_BENCHMARKS = ("grad_cache_4096", "candidate_tiles", "rows")
# Run only when named: they need another environment, as their module says.
OWN_ENVIRONMENT = ("mntp_vs_llm2vec", "openvino_encoding")
REHEARSALS = ("scale_rehearsal",)  # run only when named: half an hour and gigabytes of disk
ALL_BENCHMARKS = BENCHMARKS + SLOW_BENCHMARKS + OWN_ENVIRONMENT + REHEARSALS


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for, one after the other, on an otherwise idle machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(ALL_BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, in turns (default: 5)")
    parser.add_argument("--slow", action="store_true", help=f"also {', '.join(SLOW_BENCHMARKS)}")
    parser.add_argument("--only-docs", action="store_true", help="measure nothing, write the tables of docs again")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.names if name not in ALL_BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark `{unknown[0]}`; there are {', '.join(ALL_BENCHMARKS)}")

    if not arguments.only_docs:
        names = arguments.names or BENCHMARKS + (SLOW_BENCHMARKS if arguments.slow else ())
        for name in names:
            measure(name, arguments.repeats)
    write_page()
    return 0


def measure(name: str, repeats: int) -> None:
    """Run one benchmark and write its file."""
    module = importlib.import_module(f"benchmarks.{name}")
    print(f"{name}: {module.TITLE}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = module.measure(module.Settings(), repeats, Path(folder))
    save(name, result, repeats)
    for figure in result.figures:
        aimed = figure.at_least is not None or figure.at_most is not None
        mark = "" if not aimed else "  reached" if figure.reached else "  NOT REACHED"
        print(f"  {figure.what}: {figure.value:.3g} {figure.unit} ({figure.lowest:.3g} – {figure.highest:.3g}){mark}")
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
