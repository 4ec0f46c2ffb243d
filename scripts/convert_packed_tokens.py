"""Packed binary files of TinyLlama as rows of tokens that the stage `ddm` reads with `tokenized_path`.

    python scripts/convert_packed_tokens.py --output saves/slim_star --length 2048 \
        --source 'slim_star_combined/train_slim_*.bin' 0.69 --source 'slim_star_combined/train_star_*.bin' 0.31

The data of DiffuLLaMA's 7B adaptation (Gong et al. 2024, arXiv 2410.17891): SlimPajama and StarCoder, tokenized and
packed by TinyLlama's programs, in shares of .69 and .31, and rows of 2,048 tokens. A row is one document to the model,
as there: what shares a row sees each other. Rows are taken from the sources in turn, by their shares, until one has no
more. `--validation ROWS` holds out the first rows for evaluation.
"""

from __future__ import annotations

import argparse
import glob
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from datasets.exceptions import DatasetGenerationError

from llamafactory_embed.data.packed_tokens import read_rows


FEATURES = Features({"input_ids": ListOf(Value("int32")), "lengths": ListOf(Value("int32"))})


def files_of(pattern: str) -> list[str]:
    """The files of a source in the order of their names."""
    files = sorted(glob.glob(pattern))
    if not files:
        raise ValueError(f"`--source`: there is no file {pattern}.")
    return files


def rows_of(files: Sequence[str], length: int, end_of_document: int | None) -> Iterator[list[int]]:
    for file in files:
        yield from read_rows(file, length, end_of_document)


def take_turns(sources: Sequence[Iterator[list[int]]], shares: Sequence[float]) -> Iterator[list[int]]:
    """Rows of the source that is furthest behind its share, until it has no more."""
    taken = [0] * len(sources)
    while True:
        behind = max(range(len(sources)), key=lambda source: shares[source] * (sum(taken) + 1) - taken[source])
        row = next(sources[behind], None)
        if row is None:
            return
        taken[behind] += 1
        yield row


def records(
    sources: Sequence[tuple[Sequence[str], float]],
    length: int,
    end_of_document: int | None,
    first: int,
    last: int | None,
) -> Iterator[dict[str, Any]]:
    """The rows from number `first` on, before number `last`."""
    total = sum(share for _, share in sources)
    readers = [rows_of(files, length, end_of_document) for files, _ in sources]
    rows = take_turns(readers, [share / total for _, share in sources])
    for row in islice(rows, first, last):
        yield {"input_ids": row, "lengths": [len(row)]}


def convert(asked: argparse.Namespace, working: Path) -> int:
    """Write the rows below `working`, then move them to their place. Returns the number of rows to train on."""
    sources = [(files_of(pattern), float(share)) for pattern, share in asked.source]
    if min(share for _, share in sources) <= 0:
        raise ValueError("`--source`: every share must be above 0.")
    settings = {"sources": sources, "length": asked.length, "end_of_document": asked.end_of_document}
    if next(records(**settings, first=asked.validation, last=None), None) is None:
        raise ValueError("There is no row left to train on: lower `--validation`, or name more files.")
    end = None if asked.rows is None else asked.validation + asked.rows
    parts = {"validation": (0, asked.validation)} if asked.validation else {}
    data = {}
    for split, (first, last) in {"train": (asked.validation, end), **parts}.items():
        data[split] = Dataset.from_generator(
            records,
            features=FEATURES,
            cache_dir=str(working / "cache"),
            gen_kwargs=settings | {"first": first, "last": last},
        )
    DatasetDict(data).save_to_disk(str(working / "data"))
    (working / "data").rename(asked.output)
    return len(data["train"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", nargs=2, action="append", required=True, metavar=("FILES", "SHARE"), help="a pattern and a share"
    )
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--rows", type=int, help="train on so many rows")
    parser.add_argument("--validation", type=int, default=0, help="hold out so many rows for evaluation")
    parser.add_argument("--end-of-document", type=int, help="the separator's id (2 for Llama-2): drop what fills up")
    parser.add_argument("--output", type=Path, required=True, help="the folder that `tokenized_path` names")
    asked = parser.parse_args(arguments)
    if asked.output.exists():
        raise ValueError(f"`--output`: {asked.output} exists; name another folder.")
    working = asked.output.with_name(f"{asked.output.name}.tmp")
    try:
        count = convert(asked, working)
    except DatasetGenerationError as error:  # what is wrong with a file is its cause
        raise error.__cause__ or error from None
    finally:
        shutil.rmtree(working, ignore_errors=True)
    print(f"{count:,} rows to train on are in {asked.output}.")


if __name__ == "__main__":
    main()
