"""The options of `llamafactory-embed encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..hparams.embedding import Precision
from ..hparams.option import REQUIRED, option
from ..hparams.source import SourceOptions


STANDARD = "-"  # standard input and output
OUTPUT_ENDINGS = (".npy", ".parquet")


@dataclass(frozen=True, kw_only=True)
class EncodingOptions(SourceOptions):
    """Which texts are embedded, how, and where their vectors go."""

    source: str = option(
        REQUIRED, "What embeds: a checkpoint, a published model, or its name on the hub.", positional=True
    )
    input: str = option(
        REQUIRED,
        "The texts: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, also packed (.gz), a folder of such files, "
        "or - for standard input.",
        metavar="FILE",
    )
    output: str | None = option(
        None, "The vectors: a .npy or .parquet file, or - for standard output, as .npy.", metavar="FILE"
    )
    column: str = option("text", "Column that holds the text.")
    input_format: Literal["txt", "jsonl", "csv", "tsv"] = option(
        "txt", "How standard input is read; txt: every line is a text."
    )
    task: str | None = option(None, "Trained task whose instruction the texts get, as queries.")
    prompt: str | None = option(None, "Instruction that the texts get, as queries.", metavar="TEXT")
    role: Literal["query", "document"] | None = option(
        None, "How the texts are written: query or document; empty: query with a task or prompt, else document."
    )
    dimensions: int | None = option(
        None, "Size to which a Matryoshka model's embeddings are cut; empty: the full size.", metavar="SIZE", minimum=1
    )
    precision: Precision = option("float32", "How a vector is stored; int8 and uint8 need a calibrated checkpoint.")
    ranges: str | None = option(
        None,
        "File of the ranges of int8 and uint8; empty: quantization_ranges.json of the checkpoint.",
        metavar="FILE",
    )
    calibrate: bool = option(False, "Write no vectors: measure the ranges on these texts, and keep them.")
    devices: list[str] | None = option(
        None,
        "Devices for embedding, one process each, such as cuda:0 cuda:1; empty: the GPU if there is one, in-process.",
        metavar="DEVICE",
    )
    max_tokens_per_batch: int | None = option(
        None, "Most tokens in one forward; empty: as the checkpoint says.", minimum=1
    )
    skip_bad_rows: bool = option(False, "Leave rows out that cannot be used, and count them.")
    overwrite: bool = option(False, "Replace an existing file, and what an interrupted run with other settings left.")

    def __post_init__(self) -> None:
        if self.calibrate and self.output is not None:
            raise ValueError("`calibrate` writes ranges and no vectors: leave `output` out.")
        if self.calibrate and (self.precision != "float32" or self.dimensions is not None):
            name = "precision" if self.dimensions is None else "dimensions"
            raise ValueError(f"`calibrate` measures for int8 and uint8 and every size at once: leave `{name}` out.")
        if not self.calibrate and self.output is None:
            raise ValueError(f"`output` is missing: name a file that ends in {' or '.join(OUTPUT_ENDINGS)}, or -.")
        if self.output not in (None, STANDARD) and not str(self.output).endswith(OUTPUT_ENDINGS):
            raise ValueError(f"`output: {self.output}` must end in {' or '.join(OUTPUT_ENDINGS)}, or be -.")
        if self.task is not None and self.prompt is not None:
            raise ValueError("`task` and `prompt` both give an instruction: set only one of them.")
        if self.devices is not None and not self.devices:
            raise ValueError("`devices` is empty: leave it out, or name some.")
