"""`Encoder`: texts in, embeddings out. The one way in which a trained model is used, in evaluation and in service."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from attention_patch import Backend

from ..data.embedding_tokenizer import EmbeddingTokenizer
from ..data.tokenization import TokenizedText
from ..hparams.suggestion import suggest
from ..loading.checkpoint import load_embedding_model
from ..model.embedding import EmbeddingModel
from ..model.packed import PackedBatch, pack_texts, tokens_per_batch
from .pool import EncoderPool


# Texts tokenized, sorted and embedded together: enough to fill batches evenly, few enough for any corpus.
WINDOW = 8192

Role = Literal["query", "document"]


class Encoder:
    """A trained embedder.

    Example::

        encoder = Encoder("saves/wordnet")
        queries = encoder.encode(["a large animal"], task="wordnet_gloss_to_word")
        documents = encoder.encode(["elephant", "teapot"])
        print(queries @ documents.T)
    """

    def __init__(
        self,
        model: str | Path | EmbeddingModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: Backend | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """`overrides` are templates and lengths to read with instead of the trained ones, by their names in
        `EmbeddingConfig`."""
        if isinstance(model, EmbeddingModel):
            if tokenizer is None:
                raise ValueError("An Encoder of a model in memory needs its `tokenizer`.")
            self.model = model
        else:
            self.model = load_embedding_model(model, device=device, dtype=dtype, backend=backend)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        self.source = None if isinstance(model, EmbeddingModel) else Path(model)
        loaded_as = {"model": self.source, "tokenizer": tokenizer, "dtype": dtype, "backend": backend}
        self._loaded_as = {**loaded_as, "overrides": overrides}
        self._pool: EncoderPool | None = None
        self.overrides = dict(overrides or {})
        self.config = dataclasses.replace(self.model.embedding_config, **self.overrides)
        self.tokenizer = EmbeddingTokenizer(tokenizer, self.config)

    @property
    def dimension(self) -> int:
        """The size of an embedding."""
        return self.model.config.hidden_size

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
        """Embed texts [N] → [N, d] in their order, or one text → [d].

        With a `prompt` (an instruction, or one for each text) or a `task` (whose instruction was trained) texts are
        queries, otherwise documents; `role` overrides that, for instance for the documents of a symmetric task.
        `dimensions` cuts the embeddings of a Matryoshka model. `output_file` writes a `.npy` file as the embeddings
        come and returns it memory-mapped, for corpora that do not fit into memory.

        `devices` names where to run instead of on the Encoder's device, one process each: `["cuda:0", "cuda:1"]`,
        `["cpu"] * 4`. The processes load the checkpoint at the first call and wait for the next one until `close`;
        as they are spawned, a script that uses them needs its `if __name__ == "__main__":`.
        """
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else texts
        role = role or ("query" if task is not None or prompt is not None else "document")
        instructions = self._instructions(task, prompt, role, len(texts))
        size = self.check_dimensions(dimensions)

        shape = (len(texts), size)
        temporary = None if output_file is None else Path(f"{output_file}.tmp")
        if temporary is None:
            result = np.empty(shape, dtype=np.float32)
        else:
            result = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        embed = self.embed if devices is None else self._pool_on(devices).embed
        with tqdm(total=len(texts), desc="Encoding", disable=not show_progress_bar) as progress:
            for indices, embeddings in embed(texts, instructions, role):
                result[indices] = self.finish(embeddings, dimensions, normalize).cpu().numpy()
                progress.update(len(indices))

        if temporary is not None:
            result.flush()  # type: ignore[attr-defined]
            os.replace(temporary, str(output_file))
            result = np.load(str(output_file), mmap_mode="r")
        if single:
            result = result[0]
        return torch.from_numpy(np.array(result)) if convert_to == "torch" else result

    def close(self) -> None:
        """End the processes that `devices` started; the end of the program does it, too."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def embed(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Embeddings of some of the texts at a time, neither cut nor normalized, with the texts' positions."""
        for start in range(0, len(texts), WINDOW):
            window = range(start, min(start + WINDOW, len(texts)))
            own = instructions if isinstance(instructions, str) else [instructions[index] for index in window]
            tokenized = self._tokenize([texts[index] for index in window], own, role, start)
            for indices, embeddings in self._forward_tokens(tokenized):
                yield [window[index] for index in indices], embeddings

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt: str | None = None,
        role: Role | None = None,
        first_number: int = 0,
    ) -> list[TokenizedText]:
        """What the model reads of the texts when `encode` is called so. Error messages count from `first_number`."""
        role = role or ("query" if task is not None or prompt is not None else "document")
        return self._tokenize(texts, self._instructions(task, prompt, role, len(texts)), role, first_number)

    def encode_tokens(self, texts: Sequence[TokenizedText]) -> Tensor:
        """Embeddings [N, d] of tokenized texts, neither cut nor normalized."""
        embeddings = torch.empty(len(texts), self.dimension)
        for indices, some in self._forward_tokens(texts):
            embeddings[list(indices)] = some.float().cpu()
        return embeddings

    def finish(self, embeddings: Tensor, dimensions: int | None = None, normalize: bool | None = None) -> Tensor:
        """What `encode` returns of such embeddings: cut to `dimensions`, in float32, of unit length if the model's
        are."""
        embeddings = embeddings[:, : self.check_dimensions(dimensions)].float()
        if self.config.normalize if normalize is None else normalize:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return embeddings

    def _tokenize(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role, first_number: int
    ) -> list[TokenizedText]:
        tokenize = self.tokenizer.queries if role == "query" else self.tokenizer.documents
        return tokenize(texts, instructions, first_number)

    def _forward_tokens(self, texts: Sequence[TokenizedText]) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of at most `max_tokens_per_batch` tokens, one after the other, with the texts' positions."""
        batches = pack_texts(
            [text.token_ids for text in texts],
            tokens_per_batch(self.config.max_tokens_per_batch, self.model.device),
            [text.pooled_from for text in texts],
        )
        for batch in batches:
            yield sorted(batch.text_indices), self._forward(batch)

    def _pool_on(self, devices: Sequence[str]) -> EncoderPool:
        """The processes on these devices: those of an earlier call if the devices are the same and none has died."""
        if self.source is None:
            raise ValueError(
                "`devices` needs an Encoder of a checkpoint, which every process loads, and this one was made from a "
                "model in memory: save it, and open it with `Encoder(folder)`."
            )
        if isinstance(devices, str) or not devices:
            raise ValueError(f"`devices` must be a list such as ['cuda:0', 'cuda:1'] or ['cpu'] * 4, not {devices!r}.")
        names = tuple(map(str, devices))
        if self._pool is None or self._pool.devices != names or not self._pool.is_alive:
            self.close()
            self._pool = EncoderPool(self._loaded_as, names)
        return self._pool

    def _forward(self, batch: PackedBatch) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            embeddings = self.model([batch])
        self.model.train(was_training)
        return embeddings

    def _instructions(
        self, task: str | None, prompt: str | Sequence[str] | None, role: Role, count: int
    ) -> Sequence[str] | str:
        if prompt is not None:
            if not isinstance(prompt, str) and len(prompt) != count:
                raise ValueError(f"`prompt` must be one text or one for each of the {count} texts, got {len(prompt)}.")
            return prompt
        if task is None:
            return ""
        if task not in self.config.instructions:
            tasks = list(self.config.instructions)
            trained = ", ".join(tasks) or "none"
            raise ValueError(f"Unknown task {task!r}; this model was trained on {trained}{suggest(task, tasks)}")
        if role == "document" and task not in self.config.symmetric_tasks:
            return ""
        return self.config.instructions[task]

    def check_dimensions(self, dimensions: int | None) -> int:
        """The size of what `encode` returns; refuses one that was not trained."""
        if dimensions is None:
            return self.dimension
        trained = self.config.matryoshka_dims or []
        if dimensions not in (*trained, self.dimension):
            raise ValueError(
                f"`dimensions: {dimensions}` was not trained; this model has "
                f"{', '.join(map(str, sorted({*trained, self.dimension})))}."
            )
        return dimensions
