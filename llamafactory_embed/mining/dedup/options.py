"""The options of `llamafactory-embed dedup`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...hparams.option import REQUIRED, choices, option


Method = Literal["simhash", "minhash", "exact"]


@dataclass(frozen=True, kw_only=True)
class DedupOptions:
    """The defaults are those of tDRO (Ma et al. 2024, arXiv 2408.10613)."""

    data: str = option(REQUIRED, "training data: a data set of dataset_info.json or a file")
    against: list[str] = option(
        REQUIRED, "test sets: data sets of dataset_info.json, files, or folders in BEIR's layout"
    )
    output: str = option(REQUIRED, "the file to write, .jsonl")
    dataset_dir: str = option("data", "folder of dataset_info.json")
    methods: list[str] = option(
        ["simhash"],
        f"ways to compare queries, any of {', '.join(choices(Method))}; the first that finds a duplicate is reported",
    )
    simhash_distance: int = option(2, "most bits of 64 in which duplicates may differ", minimum=0, maximum=31)
    minhash_similarity: float = option(
        0.8, "smallest share of common pieces (Jaccard) of duplicates", minimum=0.05, maximum=1
    )
    minhash_pieces: Literal["characters", "words"] = option(
        "characters", "pieces of MinHash: windows of characters, or pairs of words"
    )
    minhash_window: int = option(4, "characters of a window", minimum=1)
    skip_bad_rows: bool = option(False, "skip and count rows that cannot be used")
    overwrite: bool = option(False, "replace an existing OUTPUT")
    examples: int = option(10, "duplicates shown in the table", minimum=0)

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in choices(Method):
                raise ValueError(f"`methods`: {method!r} is not one of {', '.join(choices(Method))}.")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"`output`: {self.output!r} must end in .jsonl.")


REPORTED_SETTINGS = ("methods", "simhash_distance", "minhash_similarity", "minhash_pieces", "minhash_window")
