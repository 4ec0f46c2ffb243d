"""ROCStories (Mostafazadeh et al. 2016) as rows for `predict_task: infilling`: one sentence of five is missing.

    python scripts/rocstories_infill.py ROCStories_winter2017.csv --output cache/rocstories_infill.jsonl
    llamafactory-cli train examples/inference/gpt2_full_ddm-infill.yaml eval_dataset=rocstories_infill \
        output_dir=output/rocstories

Reads the published CSV, with the columns sentence1 to sentence5; `--missing` says which one is to be filled in.
`predict_gap_rouge-…` compares it with what the model writes there.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path

from llamafactory_embed.data.gaps import GAP_MARK
from llamafactory_embed.files import write_text


COLUMNS = tuple(f"sentence{number}" for number in range(1, 6))


def row_of_story(story: Mapping[str, str], missing: int) -> dict[str, str]:
    """The story with a gap in the place of a sentence. The space before a sentence belongs to it."""
    sentences = [story[column].strip() for column in COLUMNS]
    pieces = [sentence if number == 0 else f" {sentence}" for number, sentence in enumerate(sentences)]
    answer = pieces[missing - 1]
    pieces[missing - 1] = GAP_MARK
    return {"text": "".join(pieces), "answer": answer}


def read_rows(path: Path, missing: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        stories = csv.DictReader(file)
        absent = [column for column in COLUMNS if column not in (stories.fieldnames or ())]
        if absent:
            raise ValueError(f"{path} has no column `{absent[0]}`: name a CSV file of ROCStories.")
        rows = []
        for story in stories:
            empty = [column for column in COLUMNS if not (story[column] or "").strip()]
            if empty:
                raise ValueError(f"{path}:{stories.line_num}: `{empty[0]}` is empty; a story has five sentences.")
            rows.append(row_of_story(story, missing))
        return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path, help="the published CSV")
    parser.add_argument("--missing", type=int, default=3, choices=range(1, 6), help="the sentence to fill in")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    rows = read_rows(asked.stories, asked.missing)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(asked.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} stories are in {asked.output}.")


if __name__ == "__main__":
    main()
