"""Models whose modules our engine does not have, embedded by sentence-transformers behind `Encoder`'s contract."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..hparams.suggestion import suggest
from ..loading.repository import Repository
from ..loading.sentence_transformers_folder import DOCUMENT_PROMPTS, UnknownModulesError
from .encoder import WINDOW, Encoder, Role
from .results import EmbeddingResults


logger = logging.getLogger(__name__)


class SentenceTransformersEncoder:
    """The same `encode` as `Encoder`'s, without packed rows: the model runs as sentence-transformers runs it.

    A task is one of the model's prompts; a `prompt` stands in front of the text as it is.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        because: str = "",
    ) -> None:
        """`because` is the sentence of `UnknownModulesError`, which is said once."""
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.base.modules import Normalize
        except ImportError as error:
            raise ValueError(
                f"{because or f'{folder} needs sentence-transformers.'} It is not installed: "
                "pip install 'llamafactory-embed[eval]'."
            ) from error
        if because:
            logger.warning("%s It embeds with sentence-transformers itself, not with packed rows.", because)
        kwargs = {} if dtype is None else {"dtype": dtype}
        self.source = Path(folder)
        self.model = SentenceTransformer(
            str(folder), device=None if device is None else str(device), model_kwargs=kwargs, local_files_only=True
        )
        self.prompts = dict(self.model.prompts)
        self.normalize = isinstance(list(self.model)[-1], Normalize)

    @property
    def dimension(self) -> int:
        """The size of an embedding."""
        size = self.model.get_embedding_dimension()
        if size is None:
            raise ValueError(f"The last module of {self.source} does not say how large its embeddings are.")
        return size

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt: str | Sequence[str] | None = None,
        role: Role | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        convert_to: Literal["numpy", "torch"] = "numpy",
        show_progress_bar: bool = False,
        output_file: str | Path | None = None,
        devices: Sequence[str] | None = None,
    ) -> Any:
        """Embed texts [N] → [N, d] in their order, or one text → [d]: as `Encoder.encode` does."""
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else texts
        role = role or ("query" if task is not None or prompt is not None else "document")
        prompts = self._prompts(task, prompt, role, len(texts))
        size = self.dimension if dimensions is None else dimensions
        if not 1 <= size <= self.dimension:
            raise ValueError(f"`dimensions: {size}` must lie between 1 and the embedding's size {self.dimension}.")
        normalize = self.normalize if normalize is None else normalize

        results = EmbeddingResults((len(texts), size), np.float32, output_file)
        use: dict[str, Any] = {"device": None if devices is None else list(devices), "convert_to_numpy": True}
        for start in range(0, len(texts), WINDOW):
            window = range(start, min(start + WINDOW, len(texts)))
            for own in sorted({prompts[index] for index in window}):
                indices = [index for index in window if prompts[index] == own]
                vectors = self.model.encode(
                    [texts[index] for index in indices],
                    prompt=own,
                    task=role,
                    show_progress_bar=show_progress_bar,
                    **use,
                )[:, :size].astype(np.float32)
                lengths = np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else 1.0
                results.rows[indices] = vectors / np.maximum(lengths, 1e-12)

        return results.finish(single=single, convert_to=convert_to)

    def close(self) -> None:
        """Nothing outlives a call: sentence-transformers ends its processes itself."""

    def _prompts(self, task: str | None, prompt: str | Sequence[str] | None, role: Role, count: int) -> Sequence[str]:
        """What is written before each text."""
        if prompt is not None and not isinstance(prompt, str):
            if len(prompt) != count:
                raise ValueError(f"`prompt` must be one text or one for each of the {count} texts, got {len(prompt)}.")
            return prompt
        if prompt is None and task is not None:
            if task not in self.prompts:
                known = ", ".join(self.prompts)
                raise ValueError(
                    f"Unknown task {task!r}; this model has prompts for {known}{suggest(task, self.prompts)}"
                )
            prompt = self.prompts[task] if role == "query" else None
        if prompt is None:
            names = ("query",) if role == "query" else DOCUMENT_PROMPTS
            fitting = [self.prompts.get(name or "", "") for name in (*names, self.model.default_prompt_name)]
            prompt = next((each for each in fitting if each), "")
        return [prompt] * count


def open_encoder(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | Path | None = None,
    **settings: Any,
) -> Encoder | SentenceTransformersEncoder:
    """An `Encoder` of any source; of a folder with modules that our engine does not have, sentence-transformers behind
    the same `encode`, which is said once."""
    try:
        return Encoder(name, device=device, dtype=dtype, cache_dir=cache_dir, **settings)
    except UnknownModulesError as error:
        if settings:
            raise
        hub = {} if cache_dir is None else {"cache_dir": cache_dir}
        folder = Repository.open(name, **hub).with_weights()
        return SentenceTransformersEncoder(folder, device=device, dtype=dtype, because=str(error))
