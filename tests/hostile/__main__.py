"""`python -m tests.hostile [SECONDS]`: the properties on ever new cases until the time is over, or the round ends in
which one of them fails.

Each round draws HOSTILE_EXAMPLES cases of every property by a seed that is printed: a failure can be seen again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


os.environ.setdefault("HOSTILE_EXAMPLES", "300")

import pytest

from tests.hostile.verdict import CASES


def main(seconds: float) -> int:
    end, seed = time.monotonic() + seconds, time.time_ns() % 2**32
    while True:
        print(f"--hypothesis-seed={seed}", flush=True)
        code = pytest.main(["-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", "tests/hostile"])
        print(f"{CASES.total():,} cases: {', '.join(f'{name} {count:,}' for name, count in sorted(CASES.items()))}")
        if code or time.monotonic() > end:
            return int(code)
        seed += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=3600.0, help="after which no round begins")
    sys.exit(main(parser.parse_args().seconds))
