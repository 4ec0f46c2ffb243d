"""Data workers hand over batches of any number of chunks under the usual limit of open files."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llamafactory_embed.data.retrieval.rows import Example
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveBatch, ContrastiveCollator
from llamafactory_embed.train.embed.tdro.batch import TdroCollator
from tests.embedders import make_embedder, make_examples, make_tokenizer
from tests.patience import PATIENCE


REPOSITORY = Path(__file__).parents[4]
OPEN_FILES = 256  # Ubuntu allows 1024: four workers, two waiting batches each, and 128 files for each of these
ROWS, WORKERS, CHUNK_TOKENS = 60, 2, 40


class Rows(Dataset[Example]):
    def __len__(self) -> int:
        return 8 * ROWS

    def __getitem__(self, number: int) -> Example:
        return dataclasses.replace(make_examples(3, 1)[number % 3], row_index=number)


def load_batches() -> None:
    """Read batches from data workers that may open only so many files; print how many chunks each batch had."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    collator = ContrastiveCollator(make_tokenizer(make_embedder(skip_instruction=True)), CHUNK_TOKENS)
    batches = [list(range(start, start + ROWS)) for start in range(0, 8 * ROWS, ROWS)]
    for inputs in DataLoader(Rows(), batch_sampler=batches, collate_fn=collator, num_workers=WORKERS):
        print(len(inputs["batch"].packed))


@pytest.mark.process
def test_workers_are_not_stopped_by_the_limit_of_open_files() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import load_batches; load_batches()"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    chunks = list(map(int, done.stdout.split()))
    assert len(chunks) == 8
    # with a file for each chunk, the batches that wait would need more than there are
    assert min(chunks) * 2 * WORKERS > OPEN_FILES


@pytest.mark.parametrize("kind", [ContrastiveCollator, TdroCollator])
def test_the_tensors_of_a_batch_are_as_many_for_any_number_of_chunks(kind: type[ContrastiveCollator]) -> None:
    counts, chunks = set(), set()
    for max_tokens in (20, 10_000):
        collator = kind(make_tokenizer(make_embedder(skip_instruction=True)), max_tokens)
        inputs = collator(make_examples(6, 2, scores=True))
        batch: ContrastiveBatch = inputs["batch"]
        assert inputs["input_ids"] is batch.texts.token_ids  # pickled as one tensor
        values = [*vars(batch).values(), *vars(batch.texts).values()]
        counts.add(sum(isinstance(value, Tensor) for value in values))
        assert not any(isinstance(value, list) for value in values)
        chunks.add(len(batch.packed))
    assert len(counts) == 1
    assert max(chunks) > 10 * min(chunks)
