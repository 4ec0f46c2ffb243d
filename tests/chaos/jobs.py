"""What the sweep interrupts: each piece of work with its folder, what must hold at every moment, and what comes of it
in the end."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory.train import tuner

from llamafactory_embed.encoding import encode
from llamafactory_embed.encoding.options import EncodingOptions
from llamafactory_embed.evaluation.report import Line, Summary, write_summary
from llamafactory_embed.export.export import export_checkpoint
from llamafactory_embed.export.options import ExportOptions
from llamafactory_embed.loading.whole_checkpoints import newest_whole_checkpoint, numbered_checkpoints
from llamafactory_embed.merging.merge import merge_checkpoints
from llamafactory_embed.merging.plan import Merge
from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions
from llamafactory_embed.train.ddm import workflow as ddm_workflow
from llamafactory_embed.train.embed.contrastive import workflow as contrastive_workflow
from llamafactory_embed.train.embed.tdro.task_weights import weight_table, write_weight_files
from tests.e2e import contrastive_runs, token_runs
from tests.embedders import PROSE, make_embedder
from tests.export.checkpoints import Trained
from tests.merging.checkpoints import save_embedder
from tests.tiny_models import save_tiny_model, tiny_model


STEPS = 3

# Imported here, once, and not in every fork.
NEEDED_BY_RUNS = (tuner, contrastive_workflow, ddm_workflow)


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


def make_jobs(root: Path) -> list[Job]:
    """All of them; what they need lies beside their folders."""
    given = root / "given"
    model = save_tiny_model(given / "model")
    rows = contrastive_runs.write_data(given / "rows")
    documents = token_runs.write_documents(given / "documents")
    embedder = Trained.save(make_embedder(base_model=str(model)).eval(), given / "embedder").folder
    others = [save_embedder(given / f"seed-{seed}", tiny_model("llama"), seed) for seed in (1, 2)]
    return [
        run_job("contrastive", contrastive_runs.recipe(model, rows, root / "contrastive", **SAVING)),
        run_job("ddm", token_runs.recipe(model, documents, root / "ddm", stage="ddm", **SAVING)),
        replacing_job(
            "export", root / "export", lambda to: export_checkpoint(embedder, to, ExportOptions(overwrite=True))
        ),
        replacing_job(
            "merge",
            root / "merge",
            lambda to: merge_checkpoints(Merge(tuple(others), (0.25, 0.75)), to, overwrite=True),
        ),
        mining_job(root / "mining", embedder, rows),
        encoding_job(root / "encoding", embedder),
        files_job("tdro weights", root / "tdro", write_weights, ("curr_weights.json", "mean_weights.json")),
        files_job("evaluation", root / "evaluation", write_scores, ("summary.md", "summary.csv", "summary.json")),
    ]


# Every step is saved and evaluated, and the first checkpoint removed for the last.
SAVING: dict[str, Any] = {
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": STEPS, "optim": "adamw_torch",
    "batch_size": 4,
}  # fmt: skip


def run_job(name: str, recipe: dict[str, Any]) -> Job:
    """A training: the newest whole checkpoint never falls behind one that was there, none with a name is half."""
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

    return Job(name, folder, prepare, lambda: contrastive_runs.perform(recipe), find_result, find_loss)


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


def mining_job(folder: Path, embedder: Path, rows: Path) -> Job:
    """Hard negatives, in several chunks."""
    output = folder / "mined.jsonl"
    options = {
        "model": str(embedder), "data": "nouns", "dataset_dir": str(rows), "output": str(output), "chunk_size": 16,
        "num_negatives": 4, "ranks": "2:20", "overwrite": True,
    }  # fmt: skip

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    return Job("mining", folder, prepare, lambda: mine(MiningOptions(**options)), lambda: digest_of(output))


def encoding_job(folder: Path, embedder: Path) -> Job:
    """Vectors of texts, in several windows."""
    texts = folder.parent / "given" / "texts.txt"
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


def write_weights(folder: Path, seed: int) -> None:
    """The files of stage tdro."""
    rows = {"first": 10, "second": 30}
    weights = {"first": 0.1 * seed, "second": 1 - 0.1 * seed}
    tables = {f"{kind}_weights.json": weight_table(weights, rows) for kind in ("curr", "mean")}
    write_weight_files(folder, tables)


def write_scores(folder: Path, seed: int) -> None:
    """The summary of an evaluation."""
    write_summary(Summary(["model"], [Line("task", "ndcg@10", "group", {"model": seed / 10})]), folder)
