"""A guide (GISTEmbed, Solatorio 2024): another embedder whose similarities tell false negatives from true ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from ....data.retrieval.rows import Example
from ....encoder.encoder import Encoder
from ..losses.rows import EmbeddedRows


class Guide:
    """Embeds the texts of a batch as the guide does, with the instructions of the data sets."""

    def __init__(self, source: str, device: torch.device) -> None:
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "`guide_model` cannot be loaded beside a model that ZeRO-3 cuts into parts: use ZeRO-2, or FSDP."
            )
        self.encoder = Encoder(source, device=device)
        self.encoder.config.require_one_vector("`guide_model`")

    def embed(self, examples: Sequence[Example], device: torch.device) -> EmbeddedRows:
        """The rows [B] in the guide's space."""
        queries = self.encoder.encode(
            [each.query for each in examples],
            prompt=[each.query_instruction for each in examples],
            convert_to="torch",
        )
        documents = [text for each in examples for text in (each.positive, *each.negatives)]
        instructions = [each.passage_instruction for each in examples for _ in range(1 + len(each.negatives))]
        passages = self.encoder.encode(documents, prompt=instructions, role="document", convert_to="torch")
        return EmbeddedRows(queries.to(device), passages.view(len(examples), -1, passages.shape[-1]).to(device))
