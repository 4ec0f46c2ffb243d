"""Texts of queries and documents, joined as mteb joins them for every model."""

from __future__ import annotations

from typing import Any

from mteb._create_dataloaders import create_dataloader


ROWS_AT_ONCE = 512


def texts_of(rows: Any, task_metadata: Any, prompt_type: Any) -> list[str]:
    """What a model reads of a corpus (title and text) or of queries (text and instruction). mteb has no public name
    for it; its own search wrappers call this function."""
    if len(rows) == 0:
        return []
    loader = create_dataloader(rows, task_metadata=task_metadata, prompt_type=prompt_type, batch_size=ROWS_AT_ONCE)
    return [text for batch in loader for text in batch["text"]]
