"""From several checkpoints to one, which is loaded once before it gets its name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from ..cards.header import CardHeader, write_card_file
from ..encoder.encoder import Encoder
from ..export.folder import new_folder
from ..export.verify import SAMPLES, stacked
from ..files import whole_file
from ..loading.checkpoint import POOLER_NAME, load_diffusion_model
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ..model.mask_token import EMBEDDING_NAME, RECORD_NAME, MaskedTokenRecord
from ..model.tensor_files import load_safetensors
from .adapters import merge_adapters
from .plan import Merge
from .records import merge_records
from .tensors import merge_tensors
from .whole import merge_whole_weights, write_whole


METHODS = {
    "linear": "the weighted mean of their weights",
    "slerp": "spherical interpolation between their weights",
}


def merge_checkpoints(merge: Merge, target: str | Path, overwrite: bool = False, note: str = "") -> None:
    """Write the merged checkpoint. It gets its name when it has been loaded: a failure leaves nothing behind. `note`
    goes into its card."""
    for checkpoint in merge.checkpoints:
        if not checkpoint.is_dir():
            raise ValueError(f"{checkpoint} is no folder: name a checkpoint on this machine.")
    with new_folder(target, merge.checkpoints[0], overwrite) as folder:
        write_merged(merge, folder)
        check_loads(folder)
        write_merge_card(folder, Path(target).name, merge, note)


def write_merged(merge: Merge, folder: Path) -> None:
    """Weights, pooler, records and tokenizer."""
    records = merge_records(merge)
    if merge.stays_adapter:
        merge_adapters(merge.checkpoints, merge.weights, folder)
    else:
        _merge_as_whole(merge, folder)
    for name in (POOLER_NAME, EMBEDDING_NAME):
        _merge_beside(merge, name, folder)
    for record in records:
        record.save(folder)
    AutoTokenizer.from_pretrained(merge.checkpoints[0]).save_pretrained(folder)


def check_loads(folder: Path) -> None:
    """The folder is what its records say, and computes numbers."""
    if (folder / CONFIG_NAME).is_file():
        numbers = stacked(Encoder(folder, device="cpu").encode(SAMPLES))
    elif (folder / RECORD_NAME).is_file():
        loaded = load_diffusion_model(folder, device="cpu")
        with torch.inference_mode():
            numbers = loaded.model(**loaded.tokenizer(SAMPLES[1], return_tensors="pt")).logits.float().numpy()
    else:
        return
    if not np.isfinite(numbers).all():
        raise ValueError("The merged weights compute numbers that are not finite: are these checkpoints of one run?")


def _merge_as_whole(merge: Merge, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".merging-") as cache:
        wholes, dtypes = [], set()
        for number, checkpoint in enumerate(merge.checkpoints):
            whole = checkpoint
            if (checkpoint / ADAPTER_CONFIG_NAME).is_file():
                whole = Path(cache, str(number))
                base, adapters = _below(checkpoint)
                dtypes.add(write_whole(checkpoint, base, adapters, whole))
            wholes.append(whole)
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        merge_whole_weights(wholes, merge.weights, merge.method, folder, dtype)


def _below(checkpoint: Path) -> tuple[str | None, list[str]]:
    """The base model of an adapter, and what was merged into it before."""
    for record in (EmbeddingConfig.find([checkpoint]), MaskedTokenRecord.find([checkpoint])):
        if record is not None:
            return record.base_model, list(record.merged_adapters)
    return None, []


def _merge_beside(merge: Merge, name: str, folder: Path) -> None:
    """A small file of weights beside the model's: the pooler's, or the mask token's embedding."""
    having = [checkpoint for checkpoint in merge.checkpoints if (checkpoint / name).is_file()]
    if not having:
        return
    if len(having) < len(merge.checkpoints):
        lacking = next(each for each in merge.checkpoints if each not in having)
        raise ValueError(f"{having[0]} holds {name} and {lacking} does not: merge checkpoints of one kind.")
    parts = [load_safetensors(checkpoint / name) for checkpoint in having]
    if any(set(part) != set(parts[0]) for part in parts):
        raise ValueError(f"The weights in {name} have other names in each checkpoint: merge checkpoints of one kind.")
    merged = {
        each: merge_tensors([part[each] for part in parts], merge.weights, merge.method, each) for each in parts[0]
    }
    with whole_file(folder / name) as temporary:
        save_file(merged, temporary)


def write_merge_card(folder: Path, name: str, merge: Merge, note: str = "") -> None:
    """Write `README.md`."""
    rows = [
        f"| {_end_of_path(checkpoint)} | {weight:.4f} |"
        for checkpoint, weight in zip(merge.checkpoints, merge.weights, strict=True)
    ]
    lines = [
        f"Merged by llamafactory-embed, a plugin of LLaMA-Factory: {METHODS[merge.method]}"
        f"{', as one adapter' if merge.stays_adapter else ''}.",
        "",
        "| checkpoint | weight |",
        "|---|---|",
        *rows,
        "",
        *([note, ""] if note else []),
    ]
    write_card_file(folder, name, CardHeader(library="llamafactory-embed", tags=("merge",)), lines)


def _end_of_path(checkpoint: Path) -> str:
    """The end of a path: where a checkpoint lay on this machine concerns nobody else."""
    return "/".join(Path(os.path.abspath(checkpoint)).parts[-2:])
