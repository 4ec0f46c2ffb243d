"""Write data/sorting: six digits and the same in order, for trying `stage: ddm-sft`. No number is in both parts."""

from __future__ import annotations

import json
import random
from pathlib import Path


FOLDER = Path(__file__).parents[1] / "data" / "sorting"
SIZES = {"train": 4000, "heldout": 200}


def main() -> None:
    """Both parts, the same at each run."""
    numbers = random.Random(0).sample(range(10**6), sum(SIZES.values()))
    lines = []
    for number in numbers:
        digits = f"{number:06d}"
        lines.append(json.dumps({"prompt": f"Sort the digits {digits}.", "answer": "".join(sorted(digits))}) + "\n")
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, size in SIZES.items():
        (FOLDER / f"{name}.jsonl").write_text("".join(lines[start : start + size]), encoding="utf-8")
        start += size


if __name__ == "__main__":
    main()
