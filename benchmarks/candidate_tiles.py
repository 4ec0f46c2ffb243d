"""Peak memory and time of InfoNCE over a large batch, with and without `candidate_tile`; no model takes part.

    python benchmarks/candidate_tiles.py --rows 4096 16384 --tiles 0 2048

Each measurement is a process of its own; what the process held before the loss is subtracted. glibc keeps freed tiles
in pieces unless large blocks are always given back, which `MALLOC_MMAP_THRESHOLD_` asks for.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time


def peak_mebibytes() -> float:
    """The most memory that this process has held (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, size: int, tile: int) -> None:
    """Print memory and seconds of one forward and backward of the loss."""
    import torch

    from llamafactory_embed.hparams.contrastive import ContrastiveOptions
    from llamafactory_embed.train.embed.losses.info_nce import info_nce
    from llamafactory_embed.train.embed.losses.rows import EmbeddedRows

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    queries, passages = (torch.randn(rows, size, generator=generator).requires_grad_() for _ in range(2))
    embedded = EmbeddedRows(queries, passages.unsqueeze(1), torch.arange(rows).unsqueeze(1))
    options = ContrastiveOptions(num_negatives=0, candidate_tile=tile or None)
    few = EmbeddedRows(queries[:8], passages[:8].unsqueeze(1), torch.arange(8).unsqueeze(1))
    for given in (options, ContrastiveOptions(num_negatives=0, candidate_tile=4)):
        info_nce(few, given).mean().backward()  # loads what torch loads late
    before, started = peak_mebibytes(), time.perf_counter()
    loss = info_nce(embedded, options).mean()
    loss.backward()
    taken = time.perf_counter() - started
    print(f"{rows:7,} rows  tile {tile or 'none':>5}  {peak_mebibytes() - before:8,.0f} MiB  {taken:6.1f} s  "
          f"loss {loss.item():.6f}", flush=True)  # fmt: skip


def main() -> None:
    """Measure every combination."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 2048], help="0: all at once")
    parser.add_argument("--size", type=int, default=128, help="numbers of an embedding")
    parser.add_argument("--one", type=int, nargs=3, metavar=("ROWS", "SIZE", "TILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one)
        return
    for rows in arguments.rows:
        for tile in arguments.tiles:
            command = [sys.executable, __file__, "--one", *map(str, (rows, arguments.size, tile))]
            subprocess.run(command, check=True, env={"MALLOC_MMAP_THRESHOLD_": "262144", **os.environ})


if __name__ == "__main__":
    main()
