"""What is looked at: the newest checkpoint of a run, which may still be training, and the model that it began with."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from transformers import AutoTokenizer

from ..encoder.encoder import Encoder
from ..hparams.embedding import LATENT_POOLINGS
from ..loading.checkpoint import default_device
from ..loading.weights import load_language_model
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig


TRAINER_STATE = "trainer_state.json"  # the last file that the Trainer writes into a checkpoint
MODELS_IN_MEMORY = 2


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint that a folder is, or the newest complete one of the run whose folder it is."""
    folder = Path(folder)
    complete = [
        each.parent for each in folder.glob(f"checkpoint-*/{TRAINER_STATE}") if (each.parent / CONFIG_NAME).is_file()
    ]
    complete += [folder] if (folder / CONFIG_NAME).is_file() else []  # written last, when the run is over
    if not complete:
        raise ValueError(
            f"{folder} is no checkpoint of an embedder, and no run has saved one there: wait for the first "
            "(`save_steps`), or name another folder."
        )
    return max(complete, key=_written)


def runs_below(folder: str | Path) -> list[str]:
    """The runs and checkpoints of embedders in a folder of runs, the newest first."""
    found = {path.parent for path in Path(folder).glob(f"*/{CONFIG_NAME}")}
    found |= {path.parent.parent for path in Path(folder).glob(f"*/checkpoint-*/{CONFIG_NAME}")}
    return [str(path) for path in sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)]


def open_trained(checkpoint: Path, device: str | None) -> Encoder:
    """The embedder of a checkpoint; one that was opened before and has not changed stays in memory."""
    return _open_trained(checkpoint, _written(checkpoint), device)


def open_base(name: str, trained: Encoder, device: str | None) -> Encoder:
    """The model before training: read, pooled and prompted as the trained one. An empty `name` is the model below the
    trained one's adapter. Latents, which only training fills, give way to the mean of all tokens."""
    name = name or trained.config.base_model or ""
    if not name:
        raise ValueError(
            "The checkpoint holds a whole model and does not say where it came from: name the base model."
        )
    if (Path(name) / CONFIG_NAME).is_file():
        return open_trained(Path(name), device)
    pooling = "mean" if trained.config.pooling in LATENT_POOLINGS else trained.config.pooling
    config = dataclasses.replace(trained.config, base_model=None, merged_adapters=[], pooling=pooling)
    return _open_base(name, _Hashable(config), device)


@functools.lru_cache(maxsize=MODELS_IN_MEMORY)
def _open_trained(checkpoint: Path, written: float, device: str | None) -> Encoder:
    encoder = Encoder(checkpoint, device=device)
    encoder.config.require_one_vector("A look at two models")
    return encoder


class _Hashable:
    """A configuration as a key: it holds lists and mappings."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.config == other.config

    def __hash__(self) -> int:
        return hash(repr(self.config))


@functools.lru_cache(maxsize=MODELS_IN_MEMORY)
def _open_base(name: str, key: _Hashable, device: str | None) -> Encoder:
    try:
        backbone = load_language_model(name, None, [], dtype="auto", with_head=False)
    except OSError as error:
        raise ValueError(f"The base model {name} cannot be loaded: {error}") from error
    model = EmbeddingModel(backbone, key.config)
    model.requires_grad_(False).eval().to(device or default_device())
    return Encoder(model, AutoTokenizer.from_pretrained(name))


def _written(checkpoint: Path) -> float:
    return (checkpoint / CONFIG_NAME).stat().st_mtime
