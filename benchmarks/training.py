"""The same few training steps by `stage: contrastive` and by sentence-transformers, from one saved model, on the same
triplets in the same order, with the same optimizer and without dropout."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .memory import PeakMemory
from .processes import Variant


LEARNING_RATE = 1e-4
TEMPERATURE = 0.05
SEED = 42


class StepClock(TrainerCallback):
    """Times whole steps, loading and tokenizing included, and watches the memory from the first of them on."""

    def __init__(self) -> None:
        self.step_ends: list[float] = []
        self.losses: list[float] = []
        self.memory = PeakMemory()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.memory.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is not None and "loss" in logs:
            self.losses.append(logs["loss"])

    def report(self, rows: int) -> dict[str, Any]:
        """The first step warms up: it is left out of the time, and its loss shows that all compute the same."""
        times = [end - start for start, end in zip(self.step_ends, self.step_ends[1:], strict=False)]
        seconds = statistics.median(times) if times else float("nan")
        return {
            "seconds": seconds,
            "samples_per_second": rows / seconds,
            "peak_mib": self.memory.above_baseline(),
            "first_loss": self.losses[0],
            "losses": self.losses,
        }


def write_dataset(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A `dataset_dir` with the one task `triplets`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "triplets.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    info = {"triplets": {"file_name": "triplets.jsonl", "formatting": "retrieval"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    return folder


def variant(kind: str, model: Path, data: Path, rows: int, steps: int, **more: Any) -> Variant:
    """`kind` is `ours` or `sentence_transformers`; `rows` are those of one batch."""
    request = {"model": str(model), "data": str(data), "rows": rows, "steps": steps, **more}
    return Variant(f"benchmarks.training:{kind}", request)


def ours(request: dict[str, Any]) -> dict[str, Any]:
    """Train through LLaMA-Factory, as a recipe does; `options` are further lines of the recipe."""
    clock = StepClock()
    train_by_recipe(request, clock)
    return clock.report(request["rows"])


def train_by_recipe(request: dict[str, Any], *callbacks: TrainerCallback) -> None:
    """Run the recipe of a request."""
    from llamafactory.train.tuner import run_exp

    with tempfile.TemporaryDirectory() as output_dir:
        recipe = {
            "model_name_or_path": request["model"],
            "stage": "contrastive",
            "do_train": True,
            "finetuning_type": "full",
            "attention": "bidirectional",
            "pooling": "mean",
            "loss_temperature": TEMPERATURE,
            "dataset": "triplets",
            "dataset_dir": request["data"],
            "disable_shuffling": True,
            "template": "default",
            "cutoff_len": 1024,
            "output_dir": output_dir,
            "per_device_train_batch_size": request["rows"],
            "max_steps": request["steps"],
            "seed": SEED,
            "optim": "adamw_torch",
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "disable_gradient_checkpointing": True,
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **request.get("options", {}),
        }
        run_exp(recipe, callbacks=list(callbacks))


def sentence_transformers(request: dict[str, Any]) -> dict[str, Any]:
    """Train with sentence-transformers; `chunk_tokens` chooses its cached loss with chunks of so many tokens."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from torch.utils.data import SequentialSampler

    class InOrder(DefaultBatchSampler):
        """The rows as they stand."""

        def __init__(self, dataset: Dataset, **kwargs: Any) -> None:
            super().__init__(SequentialSampler(dataset), **kwargs)

    clock = StepClock()
    model = SentenceTransformer(request["model"], device="cpu")
    chunk_tokens = request.get("chunk_tokens")
    if chunk_tokens is None:
        loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    else:
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_num_tokens=chunk_tokens)
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=output_dir,
            per_device_train_batch_size=request["rows"],
            max_steps=request["steps"],
            batch_sampler=InOrder,
            seed=SEED,
            optim="adamw_torch",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows_in_our_order(Path(request["data"]), request["rows"])),
            loss=loss,
            callbacks=[clock],
        )
        trainer.train()
    return clock.report(request["rows"])


def rows_in_our_order(data: Path, batch_size: int) -> list[dict[str, str]]:
    """The rows in the order in which `stage: contrastive` draws its batches."""
    from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
    from llamafactory_embed.data.retrieval.plan import BatchingOptions
    from llamafactory_embed.data.retrieval.reader import load_tasks
    from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler

    tasks = load_tasks(["triplets"], str(data), num_negatives=1, seed=SEED)
    dataset = RetrievalDataset(tasks, num_negatives=1, seed=SEED)
    sampler = GlobalBatchSampler(dataset, batch_size, BatchingOptions(shuffle_rows=False), seed=SEED)
    examples = [dataset[key] for batch in sampler for key in batch]
    return [
        {"anchor": example.query, "positive": example.positive, "negative": example.negatives[0]}
        for example in examples
    ]
