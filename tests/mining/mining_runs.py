"""`torchrun --nproc-per-node 2 -m tests.mining.mining_runs OPTIONS.json`: every rank mines with these options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions


if __name__ == "__main__":
    mine(MiningOptions(**json.loads(Path(sys.argv[1]).read_text("utf-8"))))
