"""FineWeb as the JSONL file that the entry `fineweb` of data/dataset_info.json names: one `{"text": …}` a line.

    python scripts/prepare_fineweb.py --files 000_00000.parquet 000_00001.parquet     # files that you have
    python scripts/prepare_fineweb.py --subset CC-MAIN-2024-10 --tokens 30e9          # from the hub, as a stream
    python scripts/prepare_fineweb.py --subset sample-100BT --documents 1000          # from its sample

Writes cache/fineweb-cc-24-0.jsonl. Needs `datasets`, which LLaMA-Factory brings along. Texts are left as they are. As
DiffuLLaMA (Gong et al. 2024, arXiv 2410.17891) does, all documents are taken, up to 30 billion of FineWeb's tokens
(`--tokens 30e9`); `--shortest`, `--contains` and `--language-score` leave some out.
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

Document = Mapping[str, Any]
"""A row of FineWeb: `text`, and what is known of it, such as `token_count` (of GPT-2) and `language_score`."""


def read_documents(files: list[str], subset: str) -> Iterable[Document]:
    """Rows of local parquet files, or of the hub."""
    from datasets import load_dataset

    if files:
        return load_dataset("parquet", data_files=files, split="train", streaming=True)
    return load_dataset(HUB_NAME, subset, split="train", streaming=True)


def select_documents(
    documents: Iterable[Document], *, shortest: int = 1, contains: str = "", language_score: float | None = None
) -> Iterator[Document]:
    """Those with at least `shortest` characters besides white space at the ends, with the text `contains`, and of
    which FineWeb is sure of the language by at least `language_score`."""
    for document in documents:
        is_long = len(document["text"].strip()) >= shortest
        is_sure = language_score is None or column(document, "language_score") >= language_score
        if is_long and is_sure and contains in document["text"]:
            yield document


def up_to_tokens(documents: Iterable[Document], tokens: float | None) -> Iterator[Document]:
    """The first documents, until they have `tokens` tokens."""
    count = 0
    for document in documents:
        if tokens is not None:
            if count >= tokens:
                return
            count += column(document, "token_count")
        yield document


def column(document: Document, name: str) -> Any:
    """A value that FineWeb has and other parquet files may lack."""
    if document.get(name) is None:
        raise ValueError(f"The documents have no `{name}`, which FineWeb has: leave the option out that needs it.")
    return document[name]


def write_texts(documents: Iterable[Document], destination: Path) -> int:
    """To a temporary name, then rename: an interrupted run leaves no half file behind. Returns their number."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_suffix(".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for document in tqdm(documents, desc="Writing", unit=" documents"):
            file.write(json.dumps({"text": document["text"]}, ensure_ascii=False) + "\n")
            count += 1
    if count == 0:
        temporary.unlink()
        raise ValueError("No document is left: ask for less with `--shortest`, `--contains` and `--language-score`.")
    os.replace(temporary, destination)
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="*", default=[], help="parquet files of FineWeb; without them the hub is read"
    )
    parser.add_argument("--subset", default="CC-MAIN-2024-10", help="the configuration on the hub")
    parser.add_argument("--documents", type=int, help="stop after so many documents")
    parser.add_argument("--tokens", type=float, help="stop after so many tokens, as FineWeb counts them (30e9)")
    parser.add_argument("--shortest", type=int, default=1, help="characters of the shortest document")
    parser.add_argument("--contains", default="", help="take only documents with this text")
    parser.add_argument("--language-score", type=float, help="take only documents with at least this score")
    parser.add_argument("--output", type=Path, default=DESTINATION)
    asked = parser.parse_args(arguments)
    documents = select_documents(
        read_documents(asked.files, asked.subset),
        shortest=asked.shortest,
        contains=asked.contains,
        language_score=asked.language_score,
    )
    documents = islice(up_to_tokens(documents, asked.tokens), asked.documents)
    print(f"{write_texts(documents, asked.output)} documents are in {asked.output}.")


if __name__ == "__main__":
    main()
