"""Options of `stage: tdro`."""

from __future__ import annotations

from dataclasses import dataclass

from .contrastive import RetrievalDataOptions
from .embedding import EmbeddingOptions


@dataclass
class TdroOptions(RetrievalDataOptions, EmbeddingOptions):
    """How task weights follow the losses."""
