"""Mining, evaluation and de-duplication on generated data of growing size: time a row, its growth, and memory.

The model is simulated (`scale_data.HashEmbedder`), everything else is the code that users run, in a process for each
size. `SCALE_REHEARSAL=10000000` mines ten million passages as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .processes import Run, Variant, take_turns
from .results_file import Figure, Result, spread, table_of
from .scale_data import HashEmbedder, HashEncoder, write_collection, write_rows


TITLE = "Mining and evaluation at scale"
STEPPED = 10  # the factor from size to size
MOST_GROWTH = 1.15  # exponent of the time; that of n log n is 1.09 from 10⁴ to 10⁶
LARGEST = "SCALE_REHEARSAL"


def mined_sizes() -> tuple[int, ...]:
    """From ten thousand to a million, or to what the environment says."""
    largest = int(os.environ.get(LARGEST, "1000000"))
    return tuple(10**exponent for exponent in range(4, 12) if 10**exponent <= largest)


@dataclass(frozen=True)
class Settings:
    passages: tuple[int, ...] = field(default_factory=mined_sizes)
    documents: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    rows: tuple[int, ...] = (10_000, 100_000)  # whose duplicates are sought
    queries: int = 1000
    test_queries: int = 10_000
    dimension: int = 64
    memory_mb: int = 1024
    largest_ivf: int = 1_000_000


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Every size in a process of its own."""
    shared = {"settings": dataclasses.asdict(settings), "folder": str(folder)}
    cases: dict[str, dict[str, Variant]] = {}
    for kind, sizes in (
        ("mine_flat", settings.passages),
        ("mine_ivf", tuple(size for size in settings.passages if size <= settings.largest_ivf)),
        ("evaluate_in_training", settings.documents),
        ("evaluate_task", settings.documents),
        ("evaluate_words", settings.documents),
        ("remove_duplicates", settings.rows),
    ):
        cases[kind] = {
            str(size): Variant(f"benchmarks.scale_rehearsal:{kind}", shared | {"size": size}) for size in sizes
        }
    return summarize(settings, [step for run in take_turns(cases, repeats) for step in _steps_of(run)])


def summarize(settings: Settings, runs: list[Run]) -> Result:
    """The growth of every step, and the table."""
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=growths(runs),
        table=table_of(
            runs,
            {
                "CPU seconds": lambda median: f"{median('seconds'):.1f}",
                "µs a row": lambda median: f"{median('microseconds_a_row'):.1f}",
                "own memory, MiB": lambda median: f"{median('own_mib'):.0f}",
            },
        ),
    )


def _steps_of(run: Run) -> list[Run]:
    """A run for each of the steps that a process has measured."""
    shared = {"variant": run["variant"], "repeat": run["repeat"]}
    return [{"case": f"{run['case']}: {name}", **shared, **step} for name, step in run["steps"].items()]


def growths(runs: list[Run]) -> list[Figure]:
    """For each step the exponent with which its time grows between its two largest sizes."""
    figures = []
    for case in dict.fromkeys(run["case"] for run in runs):
        here = [run for run in runs if run["case"] == case]
        sizes = sorted({int(run["variant"]) for run in here})[-2:]
        if len(sizes) < 2:
            continue
        exponents = []
        for repeat in sorted({run["repeat"] for run in here}):
            times = {int(run["variant"]): run["seconds"] for run in here if run["repeat"] == repeat}
            exponents.append(math.log(times[sizes[1]] / times[sizes[0]]) / math.log(sizes[1] / sizes[0]))
        figures.append(spread(f"{case}, growth of its time", exponents, unit="", at_most=MOST_GROWTH))
    return figures


class Meter:
    """Time of the steps of a process, and its memory above what it held before the first."""

    def __init__(self) -> None:
        from .memory import OwnMemory

        with OwnMemory() as memory:
            pass
        self._baseline = memory.mib
        self.steps: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def step(self, name: str, rows: int) -> Iterator[None]:
        """Measure a block that deals with so many rows."""
        from .memory import OwnMemory

        start, clock = time.process_time(), time.perf_counter()
        with OwnMemory() as memory:
            yield
        seconds = max(time.process_time() - start, 1e-6)
        self.steps[name] = {
            "seconds": seconds,
            "wall_seconds": time.perf_counter() - clock,
            "microseconds_a_row": 1e6 * seconds / rows,
            "own_mib": memory.mib - self._baseline,
        }
        print(f"    {name}: {seconds:.1f} s, {memory.mib - self._baseline:.0f} MiB", flush=True)


def _opened(request: dict[str, Any]) -> tuple[Settings, int, Path, Meter]:
    """What a process is asked for, and an empty folder to work in."""
    folder = Path(request["folder"], "work")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Settings(**request["settings"]), request["size"], folder, Meter()


# ------------------------------------------------ in its own process -----------------------------------------


def mine_flat(request: dict[str, Any]) -> dict[str, Any]:
    """Mining with an exact index."""
    return _mine(request, "flat")


def mine_ivf(request: dict[str, Any]) -> dict[str, Any]:
    """Mining with cells."""
    return _mine(request, "ivf")


def _mine(request: dict[str, Any], index: Any) -> dict[str, Any]:
    """The steps of `mine`; passages are the rows of all but the last, which writes a row for each query."""
    from llamafactory_embed.mining import miner as module
    from llamafactory_embed.mining.options import MiningOptions
    from llamafactory_embed.mining.sources import find_rows

    settings, size, folder, meter = _opened(request)
    write_collection(folder / "data", size, settings.queries)
    options = MiningOptions(
        model="simulated",
        data=str(folder / "data"),
        output=str(folder / "mined.jsonl"),
        index=index,
        memory_mb=settings.memory_mb,
    )
    entry = find_rows("data", options.data, options.dataset_dir)
    setattr(module, "load_embedder", lambda *about: HashEmbedder(settings.dimension))  # noqa: B010
    miner = module.Miner(options, entry)
    with meter.step("read", size):
        miner.prepare()
    for step, rows in (("embed", size), ("search", size), ("select", settings.queries)):
        with meter.step(step, rows):
            for job in miner.jobs(step):
                miner.do(step, job)
    with meter.step("start again", size):
        again = module.Miner(options, entry)
        again.prepare()
        assert not any(again.jobs(step) for step in module.JOB_STEPS)
    written = sum(len(path.read_text("utf-8").splitlines()) for path in miner.results())
    if written != settings.queries:
        raise ValueError(f"{written} rows were written for {settings.queries} queries.")
    return {"steps": meter.steps}


def evaluate_in_training(request: dict[str, Any]) -> dict[str, Any]:
    """The metrics that a training run logs."""
    from llamafactory_embed.data.retrieval.evalset import RetrievalEval
    from llamafactory_embed.evaluation.in_training import evaluate_retrieval

    from .scale_data import TextMaker

    settings, size, _, meter = _opened(request)
    maker = TextMaker()
    answers = [number * size // settings.queries for number in range(settings.queries)]
    task = RetrievalEval(
        task="generated",
        queries=tuple(maker.text(number, "q", 1) for number in answers),
        query_instructions=("",) * settings.queries,
        corpus=tuple(maker.text(number, "p", 3) for number in range(size)),
        corpus_instruction="",
        relevant=tuple(frozenset([number]) for number in answers),
    )
    encoder: Any = HashEncoder(settings.dimension)
    with meter.step("all", size):
        metrics = evaluate_retrieval(encoder, [task], share_over_ranks=False)
    return {"steps": meter.steps, "recall@100": metrics["recall@100"]}


def evaluate_task(request: dict[str, Any]) -> dict[str, Any]:
    """`eval` on a local collection, then once more with its vectors on disk."""
    from mteb.models.model_meta import ModelMeta

    from llamafactory_embed.evaluation.local import load_path
    from llamafactory_embed.evaluation.models import EMPTY_META
    from llamafactory_embed.evaluation.mteb_encoder import MtebEncoder
    from llamafactory_embed.evaluation.prompts import Instructions
    from llamafactory_embed.evaluation.run import run_task
    from llamafactory_embed.evaluation.tasks import LOCAL, ChosenTask

    settings, size, folder, meter = _opened(request)
    write_collection(folder / "data", size, settings.queries)
    with meter.step("read", size):
        task = load_path(str(folder / "data")).task
    meta = ModelMeta(**EMPTY_META, name="simulated/hash", revision="1", framework=["NumPy"])
    for name in ("embed and search", "search again"):
        encoder: Any = HashEncoder(settings.dimension)
        with meter.step(name, size):
            model = MtebEncoder(encoder, meta, Instructions({}, {}, False, frozenset([task.metadata.name])),
                                folder / "vectors")  # fmt: skip
            score = run_task(model, ChosenTask(task, LOCAL, is_local=True), folder, overwrite=True).get_score()
            model.close()
    return {"steps": meter.steps, "ndcg@10": score}


def evaluate_words(request: dict[str, Any]) -> dict[str, Any]:
    """BM25 on a local collection."""
    from llamafactory_embed.evaluation.lexical import LexicalSearch
    from llamafactory_embed.evaluation.local import load_path

    settings, size, folder, meter = _opened(request)
    write_collection(folder / "data", size, settings.queries)
    task = load_path(str(folder / "data")).task
    data = task.dataset["default"]["test"]
    model = LexicalSearch("bm25")
    with meter.step("index", size):
        model.index(data["corpus"], task_metadata=task.metadata)
    with meter.step("search", size):
        model.search(data["queries"], task_metadata=task.metadata, top_k=1000)
    return {"steps": meter.steps}


def remove_duplicates(request: dict[str, Any]) -> dict[str, Any]:
    """`dedup` by both kinds of hashes."""
    from llamafactory_embed.mining.dedup.deduplicate import deduplicate
    from llamafactory_embed.mining.dedup.options import DedupOptions

    settings, size, folder, meter = _opened(request)
    write_rows(folder / "rows.jsonl", size, "r")
    write_rows(folder / "tests.jsonl", settings.test_queries, "t")
    for method in ("simhash", "minhash"):
        options = DedupOptions(
            data=str(folder / "rows.jsonl"),
            against=[str(folder / "tests.jsonl")],
            output=str(folder / f"{method}.jsonl"),
            methods=[method],
        )
        with meter.step(method, size):
            deduplicate(options)
    return {"steps": meter.steps}
