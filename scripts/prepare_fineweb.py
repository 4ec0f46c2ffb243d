"""FineWeb as the JSONL file that the entry `fineweb` of data/dataset_info.json names: one `{"text": …}` a line.

    python scripts/prepare_fineweb.py --files 000_00000.parquet 000_00001.parquet     # files that you have
    python scripts/prepare_fineweb.py --subset CC-MAIN-2024-10 --documents 3000000    # from the hub, as a stream

Writes cache/fineweb-cc-24-0.jsonl. Needs `datasets`, which LLaMA-Factory brings along. Texts are left as they
are; those shorter than `--shortest` characters are left out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


REPOSITORY = Path(__file__).parents[1]
DESTINATION = REPOSITORY / "cache" / "fineweb-cc-24-0.jsonl"
HUB_NAME = "HuggingFaceFW/fineweb"


def read_rows(files: list[str], subset: str) -> Iterable[Mapping[str, Any]]:
    """Rows of local parquet files, or of the hub."""
    from datasets import load_dataset

    if files:
        return load_dataset("parquet", data_files=files, split="train", streaming=True)
    return load_dataset(HUB_NAME, subset, split="train", streaming=True)


def long_texts(rows: Iterable[Mapping[str, Any]], shortest: int) -> Iterator[str]:
    """The column `text`."""
    for row in rows:
        text = row["text"].strip()
        if len(text) >= shortest:
            yield text


def write_texts(texts: Iterable[str], destination: Path) -> int:
    """To a temporary name, then rename: an interrupted run leaves no half file behind. Returns their number."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_suffix(".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for text in tqdm(texts, desc="Writing", unit=" documents"):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
    if count == 0:
        temporary.unlink()
        raise ValueError("No document is long enough: lower `--shortest`, or name other `--files`.")
    os.replace(temporary, destination)
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="*", default=[], help="parquet files of FineWeb; without them the hub is read"
    )
    parser.add_argument("--subset", default="CC-MAIN-2024-10", help="the configuration on the hub")
    parser.add_argument("--documents", type=int, help="stop after so many")
    parser.add_argument("--shortest", type=int, default=200, help="characters of the shortest document")
    parser.add_argument("--output", type=Path, default=DESTINATION)
    asked = parser.parse_args(arguments)
    texts = islice(long_texts(read_rows(asked.files, asked.subset), asked.shortest), asked.documents)
    print(f"{write_texts(texts, asked.output)} documents are in {asked.output}.")


if __name__ == "__main__":
    main()
