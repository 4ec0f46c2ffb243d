"""Options of `llamafactory-embed export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..hparams.option import REQUIRED, option


Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint becomes a folder in the layout of sentence-transformers."""

    dtype: Dtype = option(
        "auto",
        "Type of the saved weights; auto: that of the base model. OpenVINO graphs: float32 (auto) or int8.",
    )
    device: str = option("cpu", "Device for merging and checking.")
    query_task: str | None = option(
        None, "Task whose instruction becomes the prompt `query` of the exported model.", metavar="TASK"
    )
    dimensions: int | None = option(None, "Size to which a Matryoshka model's embeddings are cut.", metavar="SIZE")
    dequantize: bool = option(
        False, "Merge a QLoRA adapter into the weights as quantization has rounded them (needs CUDA)."
    )
    max_shard_size: str = option("5GB", "Size of the largest weight file.", metavar="SIZE")
    overwrite: bool = option(False, "Replace an earlier export in FOLDER.")
    check_tasks: list[str] | None = option(
        None,
        "With --layout openvino: tasks, as `eval` names them, whose nDCG@10 before and after the card shows.",
        metavar="TASK",
    )


@dataclass(frozen=True)
class ExportTarget:
    """What the command exports, where to, and whether it is pushed."""

    checkpoint: str = option(REQUIRED, "Folder that a training run wrote, or a published checkpoint.", positional=True)
    folder: str = option(REQUIRED, "Folder to write; it must not exist.", positional=True)
    layout: Literal["sentence-transformers", "adapter", "llm2vec", "openvino"] = option(
        "sentence-transformers",
        "sentence-transformers: merged weights, which servers read too; adapter: the adapter alone; llm2vec: the "
        "layout of the llm2vec package; openvino: a graph for CPUs, which sentence-transformers loads.",
    )
    push_to: str | None = option(
        None, "Repository on the hub to which the checked folder is uploaded.", metavar="OWNER/NAME"
    )
    private: bool = option(False, "Make a new repository on the hub private.")
    dry_run: bool = option(False, "With --push-to: say what would be uploaded, and upload nothing.")
    server: str | None = option(
        None,
        "Address of a running server of the exported model, which is compared with the checkpoint; nothing is pushed "
        "if it differs.",
        metavar="URL",
    )
