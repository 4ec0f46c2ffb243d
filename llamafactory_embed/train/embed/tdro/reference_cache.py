"""The reference's losses of a whole run, computed once: the reference takes no memory while the proxy trains, and the
next run on the same data takes no time for it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.extras import logging
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ....data.batches import EvenEpochs
from ....data.retrieval.dataset import RetrievalDataset
from ....data.retrieval.rows import Example
from ....data.retrieval.sampler import GlobalBatchSampler
from ....files import digest, whole_file
from ....hparams.contrastive import ComparisonOptions
from ....model.embedding_config import EmbeddingConfig
from ....model.packed import PackedBatch
from ..gather import gather_values, rank
from .batch import ReferenceFunction, TdroBatch, TdroCollator, example_id


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


logger = logging.get_logger(__name__)

CHECK_SUM = "check_sum"  # beside the losses in the file

# Parts of an embedder's configuration that do not change its losses.
CONFIG_LEFT_OUT = (
    "instructions",
    "symmetric_tasks",
    "default_task",
    "base_model",
    "merged_adapters",
    "normalize",
    "matryoshka_dims",
)
# Parts that count where they are set: files of embedders without them keep their names.
CONFIG_WHERE_SET = ("dense", "appends_eos", "mask_tokens", "mask_token")


class CachedReference:
    """Losses by example; an example without one belongs to another run."""

    def __init__(self, losses: dict[int, float]) -> None:
        self.losses = losses

    def __call__(self, batch: TdroBatch, forwards: Sequence[PackedBatch]) -> Tensor:
        return torch.tensor([self.losses[number] for number in batch.example_ids.tolist()])


def cache_path(
    folder: str | Path, models: Iterable[str], config: EmbeddingConfig, options: ComparisonOptions, dtype: object
) -> Path:
    """The file for a reference made of these models; another reference, prompt, length or temperature has another."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in CONFIG_LEFT_OUT}
    settings = {name: value for name, value in settings.items() if value or name not in CONFIG_WHERE_SET}
    identity = [
        [fingerprint(model) for model in models],
        settings,
        options.similarity,
        options.loss_temperature,
        str(dtype),
    ]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8")).hexdigest()
    return Path(folder) / f"reference_losses-{name[:16]}.safetensors"


def fingerprint(model: str) -> list[Any]:
    """What tells one model from another: its name, and of a folder its files with their sizes and times."""
    if not os.path.isdir(model):
        return [model]
    names = sorted(name for name in os.listdir(model) if name.endswith((".json", ".safetensors", ".bin")))
    stats = [os.stat(os.path.join(model, name)) for name in names]
    files = [[name, each.st_size, each.st_mtime_ns] for name, each in zip(names, stats, strict=True)]
    return [os.path.abspath(model), *files]


def examples_of_run(
    dataset: RetrievalDataset,
    sampler: GlobalBatchSampler,
    training_args: TrainingArguments,
    stop_after: int | None = None,
) -> Iterator[Example]:
    """What this rank will see in a run, as the Trainer counts its steps, or until it stops after some."""
    batches = EvenEpochs(sampler)
    accumulated = training_args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(batches) / accumulated)
    steps = training_args.max_steps
    if steps <= 0:
        steps = math.ceil(training_args.num_train_epochs * steps_per_epoch)
    steps = min(steps, stop_after or steps)
    for epoch in range(math.ceil(steps / steps_per_epoch)):
        sampler.set_epoch(epoch)
        left = steps - epoch * steps_per_epoch
        for batch in itertools.islice(batches, left * accumulated):
            yield from (dataset[key] for key in batch)
    sampler.set_epoch(0)


def fill_cache(
    path: Path,
    examples: Iterable[Example],
    collator: TdroCollator,
    batch_size: int,
    load: Callable[[], ReferenceFunction],
) -> CachedReference:
    """Read the losses that the file holds, compute those that are missing on any rank (the reference is loaded only if
    there are some), and write them all back."""
    losses = read_losses(path)
    missing: dict[int, Example] = {}
    for example in examples:
        number = example_id(example)
        if number not in losses:
            missing.setdefault(number, example)
    if any(gather_values(bool(missing))):
        computed = compute_losses(missing, collator, batch_size, load())
        for part in gather_values(computed):
            losses.update(part)
        if rank() == 0:
            write_losses(path, losses)
    return CachedReference(losses)


def compute_losses(
    examples: Mapping[int, Example], collator: TdroCollator, batch_size: int, reference: ReferenceFunction
) -> dict[int, float]:
    """The reference's losses of numbered examples."""
    order = sorted(examples.items(), key=lambda item: len(item[1].negatives))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    losses: dict[int, float] = {}
    for group in tqdm(groups, desc="Losses of the reference", disable=rank() != 0):
        batch: TdroBatch = collator([example for _, example in group])["batch"]
        values = reference(batch, batch.packed).tolist()
        losses.update(zip((number for number, _ in group), values, strict=True))
    return losses


def read_losses(path: Path) -> dict[int, float]:
    """Losses by example; none if there is no file, or one that is not as it was written, which is said."""
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
        if tensors.get(CHECK_SUM, torch.empty(0)).tolist() != check_sum_of(tensors["examples"], tensors["losses"]):
            raise ValueError("its check sum is not that of its losses")
        return dict(zip(tensors["examples"].tolist(), tensors["losses"].tolist(), strict=True))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning_rank0(f"{path} is damaged ({error}): the losses are computed again, and it is replaced.")
        return {}


def write_losses(path: Path, losses: Mapping[int, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"examples": torch.tensor(list(losses)), "losses": torch.tensor(list(losses.values()))}
    check_sum = torch.tensor(check_sum_of(**tensors), dtype=torch.uint8)
    with whole_file(path) as temporary:
        save_file({**tensors, CHECK_SUM: check_sum}, temporary)


def check_sum_of(examples: Tensor, losses: Tensor) -> list[int]:
    """Of numbers of examples and their losses, in this order."""
    return list(digest(*(f"{each.dtype} {list(each.shape)}" for each in (examples, losses)),
                       examples.numpy().tobytes(), losses.numpy().tobytes(), size=16))  # fmt: skip
