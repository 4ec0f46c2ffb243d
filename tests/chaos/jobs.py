"""What the sweep interrupts: each piece of work with its folder, what must hold at every moment, and what comes of it
in the end."""

from __future__ import annotations

import functools
import hashlib
import importlib
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_embed.loading.whole_checkpoints import newest_whole_checkpoint, numbered_checkpoints


STEPS = 3


@dataclass(frozen=True)
class Job:
    """A piece of work that changes `folder` and nothing else."""

    name: str
    folder: Path
    prepare: Callable[[], None]
    """Put the folder into the state in which the work finds it."""
    work: Callable[[], object]
    """Begins, and goes on after an interruption."""
    find_result: Callable[[], str | None]
    """What the work is for, as a digest; None while there is none. While the work runs, it is that of before or that
    of the end."""
    find_loss: Callable[[], str | None] = lambda: None
    """What is wrong at the moment, besides that."""


def digest_of(*paths: Path) -> str | None:
    """Of files, and of folders with all that is in them; None if one is missing."""
    state = hashlib.sha256()
    for path in paths:
        if not path.exists():
            return None
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            state.update(file.relative_to(path.parent).as_posix().encode())
            state.update(file.read_bytes() if file.is_file() else b"/")
    return state.hexdigest()


class Given:
    """What the jobs need; it lies beside their folders and is made when the first of them asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def model(self) -> Path:
        from tests.tiny_models import save_tiny_model

        return save_tiny_model(self.folder / "model")

    @functools.cached_property
    def rows(self) -> Path:
        from tests.e2e.contrastive_runs import write_data

        return write_data(self.folder / "rows")

    @functools.cached_property
    def documents(self) -> Path:
        from tests.e2e.token_runs import write_documents

        return write_documents(self.folder / "documents")

    @functools.cached_property
    def embedder(self) -> Path:
        from tests.embedders import make_embedder
        from tests.export.checkpoints import Trained

        return Trained.save(make_embedder(base_model=str(self.model)).eval(), self.folder / "embedder").folder


def make_jobs(root: Path, names: Collection[str] = ()) -> list[Job]:
    """Those with these names, or all. Each imports what it needs: here, once, and not in every fork."""
    given = Given(root / "given")
    unknown = set(names) - set(JOBS)
    if unknown:
        raise SystemExit(f"There is no job {', '.join(sorted(unknown))}: they are {', '.join(JOBS)}.")
    return [make(root / name.replace(" ", "-"), given) for name, make in JOBS.items() if not names or name in names]


def contrastive_job(folder: Path, given: Given) -> Job:
    from tests.e2e.contrastive_runs import recipe

    importlib.import_module("llamafactory_embed.train.embed.contrastive.workflow")
    return run_job("contrastive", recipe(given.model, given.rows, folder, **SAVING))


def ddm_job(folder: Path, given: Given) -> Job:
    from tests.e2e.token_runs import recipe

    importlib.import_module("llamafactory_embed.train.ddm.workflow")
    return run_job("ddm", recipe(given.model, given.documents, folder, stage="ddm", **SAVING))


def export_job(folder: Path, given: Given) -> Job:
    from llamafactory_embed.export.export import export_checkpoint
    from llamafactory_embed.export.options import ExportOptions

    source, options = given.embedder, ExportOptions(overwrite=True)
    return replacing_job("export", folder, lambda to: export_checkpoint(source, to, options))


def merge_job(folder: Path, given: Given) -> Job:
    from llamafactory_embed.merging.merge import merge_checkpoints
    from llamafactory_embed.merging.plan import Merge
    from tests.merging.checkpoints import save_embedder
    from tests.tiny_models import tiny_model

    sources = tuple(save_embedder(given.folder / f"seed-{seed}", tiny_model("llama"), seed) for seed in (1, 2))
    return replacing_job(
        "merge", folder, lambda to: merge_checkpoints(Merge(sources, (0.25, 0.75)), to, overwrite=True)
    )


# Every step is saved and evaluated, and the first checkpoint removed for the last.
SAVING: dict[str, Any] = {
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": STEPS, "optim": "adamw_torch",
    "batch_size": 4,
}  # fmt: skip


def run_job(name: str, recipe: dict[str, Any]) -> Job:
    """A training: the newest whole checkpoint never falls behind one that was there, none with a name is half."""
    from tests.e2e.contrastive_runs import perform

    importlib.import_module("llamafactory.train.tuner")
    folder = Path(recipe["output_dir"])
    newest = [0]

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        newest[0] = 0

    def find_loss() -> str | None:
        checkpoint, skipped = newest_whole_checkpoint(folder)
        steps = [int(each.name.split("-")[1]) for each in numbered_checkpoints(folder)]
        before, newest[0] = newest[0], max([newest[0], *steps])
        if skipped:
            return skipped[0]
        model, last = (where / "model.safetensors" for where in (folder, folder / f"checkpoint-{STEPS}"))
        if model.exists() and model.read_bytes() != last.read_bytes():
            return "the model of the run is half there"
        if before and (checkpoint is None or checkpoint.name != f"checkpoint-{newest[0]}"):
            return f"checkpoint-{before} is gone, and {checkpoint} is the newest"
        return None

    def find_result() -> str | None:
        last = folder / f"checkpoint-{STEPS}"
        return digest_of(*(last / each for each in ("model.safetensors", "optimizer.pt", "rng_state.pth")))

    return Job(name, folder, prepare, lambda: perform(recipe), find_result, find_loss)


def replacing_job(name: str, folder: Path, write: Callable[[Path], object]) -> Job:
    """A folder that replaces an older one, which is told apart by a file of its own."""
    target = folder / "target"
    older = folder.parent / "given" / f"{name}-before"

    def prepare() -> None:
        if not older.exists():
            write(older)
            (older / "old").touch()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(older, target)

    return Job(name, folder, prepare, lambda: write(target), lambda: digest_of(target))


def mining_job(folder: Path, given: Given) -> Job:
    """Hard negatives, in several chunks."""
    from llamafactory_embed.mining.mine import mine
    from llamafactory_embed.mining.options import MiningOptions

    output = folder / "mined.jsonl"
    options = {
        "model": str(given.embedder), "data": "nouns", "dataset_dir": str(given.rows), "output": str(output),
        "chunk_size": 16, "num_negatives": 4, "ranks": "2:20", "overwrite": True,
    }  # fmt: skip

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    return Job("mining", folder, prepare, lambda: mine(MiningOptions(**options)), lambda: digest_of(output))


def encoding_job(folder: Path, given: Given) -> Job:
    """Vectors of texts, in several windows."""
    from llamafactory_embed.encoding import encode
    from llamafactory_embed.encoding.options import EncodingOptions
    from tests.embedders import PROSE

    embedder, texts = given.embedder, given.folder / "texts.txt"
    texts.write_text("\n".join(PROSE[:20]) + "\n", encoding="utf-8")
    output = folder / "vectors.npy"
    options = EncodingOptions(source=str(embedder), input=str(texts), output=str(output), overwrite=True)

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def work() -> None:
        encode.WINDOW = 7
        encode.encode_file(options, lambda line: None)

    return Job("encoding", folder, prepare, work, lambda: digest_of(output))


def files_job(name: str, folder: Path, write: Callable[[Path, int], object], names: tuple[str, ...]) -> Job:
    """Files that replace older ones, each by itself."""
    old: dict[str, str | None] = {}

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder, 2)
        new = {each: digest_of(folder / each) for each in names}
        write(folder, 1)
        old.update({each: digest_of(folder / each) for each in names})
        assert all(old[each] != new[each] for each in names)
        sound.update({each: {old[each], new[each]} for each in names})

    sound: dict[str, set[str | None]] = {}

    def find_loss() -> str | None:
        return next(
            (f"{each} is neither old nor new" for each in names if digest_of(folder / each) not in sound[each]), None
        )

    def find_result() -> str | None:
        """Only that of all files together is one."""
        are_old = [digest_of(folder / each) == old[each] for each in names]
        return digest_of(folder) if not any(are_old) else None

    return Job(name, folder, prepare, lambda: write(folder, 2), find_result, find_loss)


def weights_job(folder: Path, given: Given) -> Job:
    """The files of stage tdro."""
    from llamafactory_embed.train.embed.tdro.task_weights import weight_table, write_weight_files

    def write(folder: Path, seed: int) -> None:
        rows = {"first": 10, "second": 30}
        weights = {"first": 0.1 * seed, "second": 1 - 0.1 * seed}
        tables = {f"{kind}_weights.json": weight_table(weights, rows) for kind in ("curr", "mean")}
        write_weight_files(folder, tables)

    return files_job("tdro weights", folder, write, ("curr_weights.json", "mean_weights.json"))


def scores_job(folder: Path, given: Given) -> Job:
    """The summary of an evaluation."""
    from llamafactory_embed.evaluation.report import Line, Summary, write_summary

    def write(folder: Path, seed: int) -> None:
        write_summary(Summary(["model"], [Line("task", "ndcg@10", "group", {"model": seed / 10})]), folder)

    return files_job("evaluation", folder, write, ("summary.md", "summary.csv", "summary.json"))


JOBS: dict[str, Callable[[Path, Given], Job]] = {
    "contrastive": contrastive_job,
    "ddm": ddm_job,
    "export": export_job,
    "merge": merge_job,
    "mining": mining_job,
    "encoding": encoding_job,
    "tdro weights": weights_job,
    "evaluation": scores_job,
}
