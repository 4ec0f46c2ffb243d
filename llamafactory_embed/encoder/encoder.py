"""`Encoder`: texts in, embeddings out. The one way in which a trained model is used, in evaluation and in service."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from attention_patch import Backend

from ..data.embedding_tokenizer import EmbeddingTokenizer
from ..data.tokenization import TokenizedText
from ..hparams.embedding import Precision
from ..hparams.suggestion import suggest
from ..loading.hub import Push, push_checkpoint
from ..loading.served import load_source, load_tokenizer_of, with_other_texts
from ..loading.source import Source, find_source
from ..model.embedding import EmbeddingModel
from ..model.packed import PackedBatch, pack_texts, tokens_per_batch
from ..model.quantization import (
    QuantizationRanges,
    RangeMeter,
    dequantize,
    needs_ranges,
    quantize,
    require_ranges,
    stored_as,
)
from ..model.vector_sets import count_vectors
from .pool import EncoderPool
from .results import EmbeddingResults
from .sets import check_asked, collect_sets, similarity_of_sets


# Texts tokenized, sorted and embedded together: enough to fill batches evenly, few enough for any corpus.
WINDOW = 8192

Role = Literal["query", "document"]


class Encoder:
    """A trained embedder.

    Example::

        encoder = Encoder("saves/wordnet")  # or Encoder("Qwen/Qwen3-0.6B", pooling="last", attention="causal")
        queries = encoder.encode(["a large animal"], task="wordnet_gloss_to_word")
        documents = encoder.encode(["elephant", "teapot"])
        print(queries @ documents.T)
    """

    def __init__(
        self,
        model: str | Path | Source | EmbeddingModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: Backend | None = None,
        overrides: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        """`model` is a checkpoint: a folder, a name on the hub, `name@revision`, what `find_source` has made of one of
        them, or a model in memory.

        `settings` are how texts are embedded where the checkpoint does not say, or instead of what it says, by their
        names in `EmbeddingConfig`, and `adapters` on top of it; `overrides` are the same as a mapping. A model in
        memory can only be given other templates and lengths.
        """
        self.overrides = {**(overrides or {}), **settings}
        self.source: Source | None = None
        if isinstance(model, EmbeddingModel):
            if tokenizer is None:
                raise ValueError("An Encoder of a model in memory needs its `tokenizer`.")
            self.model = model
            self.config = with_other_texts(model.embedding_config, self.overrides)
        else:
            hub = {} if cache_dir is None else {"cache_dir": cache_dir}
            self.source = model if isinstance(model, Source) else find_source(model, self.overrides, **hub)
            self.model = load_source(self.source, device=device, dtype=dtype, backend=backend)
            tokenizer = tokenizer or load_tokenizer_of(self.source)
            self.config = self.model.embedding_config
        self._loaded_as = {"model": self.source, "tokenizer": tokenizer, "dtype": dtype, "backend": backend}
        self._pool: EncoderPool | None = None
        self.tokenizer = EmbeddingTokenizer(tokenizer, self.config)

    @property
    def dimension(self) -> int:
        """The size of an embedding, or of each of a text's vectors."""
        return self.model.dimension

    @functools.cached_property
    def ranges(self) -> QuantizationRanges | None:
        """Between which ends the numbers of int8 and uint8 embeddings lie: those that lie beside the checkpoint, or
        that `calibrate` measures."""
        return None if self.source is None else QuantizationRanges.find([self.source.own.folder])

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt: str | Sequence[str] | None = None,
        role: Role | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        convert_to: Literal["numpy", "torch"] = "numpy",
        show_progress_bar: bool = False,
        output_file: str | Path | None = None,
        devices: Sequence[str] | None = None,
    ) -> Any:
        """Embed texts [N] → [N, d] in their order, or one text → [d]. A model with `multi_vector` gives a list of the
        texts' vectors [n, d], or those of one text.

        With a `prompt` (an instruction, or one for each text) or a `task` (whose instruction was trained) texts are
        queries, otherwise documents; `role` overrides that, for instance for the documents of a symmetric task.
        `dimensions` cuts the embeddings of a Matryoshka model. `precision` stores them in fewer bytes, as
        sentence-transformers does; int8 and uint8 need the checkpoint's `ranges`. `output_file` writes a `.npy` file
        as the embeddings come and returns it memory-mapped, for corpora that do not fit into memory.

        `devices` names where to run instead of on the Encoder's device, one process each: `["cuda:0", "cuda:1"]`,
        `["cpu"] * 4`. The processes load the checkpoint at the first call and wait for the next one until `close`;
        as they are spawned, a script that uses them needs its `if __name__ == "__main__":`.
        """
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else texts
        role = role or ("query" if task is not None or prompt is not None else "document")
        instructions = self._instructions(task, prompt, role, len(texts))
        size = self.check_dimensions(dimensions)
        unit_length = self.config.normalize if normalize is None else normalize
        if self.config.multi_vector:
            check_asked(precision, output_file, devices)
            embedded = self.embed_sets(texts, instructions, role)
            finish = functools.partial(self.finish, dimensions=dimensions, normalize=unit_length)
            return collect_sets(embedded, len(texts), finish, precision, single, convert_to, show_progress_bar)
        ranges = self.ranges_for(precision, size, unit_length)

        dtype, columns = stored_as(precision, size)
        results = EmbeddingResults((len(texts), columns), dtype, output_file)
        embed = self.embed if devices is None else self._pool_on(devices).embed
        with tqdm(total=len(texts), desc="Encoding", disable=not show_progress_bar) as progress:
            for indices, embeddings in embed(texts, instructions, role):
                finished = self.finish(embeddings, dimensions, unit_length).cpu().numpy()
                results.rows[indices] = quantize(finished, precision, ranges)
                progress.update(len(indices))

        return results.finish(single=single, convert_to=convert_to)

    def encode_queries(self, texts: str | Sequence[str], **how: Any) -> Any:
        """`encode` with the role of queries, also where no task or prompt is named."""
        return self.encode(texts, role="query", **how)

    def encode_documents(self, texts: str | Sequence[str], **how: Any) -> Any:
        """`encode` with the role of documents; those of a symmetric task have its instruction."""
        return self.encode(texts, role="document", **how)

    def similarity(
        self, a: Any, b: Any, *, precision: Precision = "float32", dimensions: int | None = None
    ) -> np.ndarray:
        """The model's similarity (cosine, inner product or MaxSim) of all pairs of N and M texts: [N, M].

        `precision` is that of vectors that are not floats; float ones may be compared with them. Of two vectors of
        bits it is 1 - 2 · (the share of bits that differ)."""
        size = self.check_dimensions(dimensions)
        if self.config.multi_vector:
            return similarity_of_sets(a, b)
        left, right = (self._as_compared(each, precision, size) for each in (a, b))
        return left @ right.T

    def calibrate(self, texts: Sequence[str], **how: Any) -> QuantizationRanges:
        """Measure the ranges of int8 and uint8 on some thousand texts like those to come, and use them from now on;
        `.save(folder)` keeps them beside the checkpoint. `how` says how the texts are embedded, as in `encode`."""
        meter = self.range_meter()
        for start in range(0, len(texts), WINDOW):
            meter.add(self.encode(texts[start : start + WINDOW], normalize=False, **how))
        self.ranges = meter.finish()
        return self.ranges

    def range_meter(self) -> RangeMeter:
        """Measures the ranges of all sizes of this model, on embeddings that are neither cut nor normalized."""
        self.config.require_one_vector("Calibration")
        sizes = sorted({*(self.config.matryoshka_dims or []), self.dimension})
        return RangeMeter(sizes, self.config.normalize)

    def ranges_for(self, precision: Precision, dimensions: int, unit_length: bool) -> np.ndarray | None:
        """The ends [2, dimensions] that a precision needs; None for one that needs none."""
        if not needs_ranges(precision):
            return None
        found = require_ranges(
            self.ranges, "a model in memory" if self.source is None else self.source.name, precision
        )
        return found.of(dimensions, unit_length)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, dry_run: bool = False
    ) -> Push:
        """Upload the checkpoint, as `Encoder` reads it, to a repository `owner/name` of the hub; return what went
        there, or with `dry_run` what would. Other programs read what `llamafactory-embed export` writes and pushes."""
        if self.source is None or self.source.kind != "checkpoint" or not self.source.own.is_local:
            raise ValueError("`push_to_hub` uploads a checkpoint's folder, which this Encoder has not: export it.")
        return push_checkpoint(self.source.own.folder, repository, private, token, dry_run)

    def close(self) -> None:
        """End the processes that `devices` started; the end of the program does it, too."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def embed(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Embeddings of some of the texts at a time, neither cut nor normalized, with the texts' positions."""
        self.config.require_one_vector("This use of an Encoder")
        yield from ((positions, vectors) for positions, _, vectors in self._embed(texts, instructions, role))

    def embed_sets(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> Iterator[tuple[Sequence[int], Sequence[Tensor]]]:
        """The vectors [n, d] of some of the texts at a time, neither cut nor normalized, with the texts' positions."""
        for positions, batch, vectors in self._embed(texts, instructions, role):
            counts = [count for _, count in sorted(zip(batch.text_indices, count_vectors(batch), strict=True))]
            yield positions, vectors.split(counts)

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
        self.config.require_one_vector("`encode_tokens`")
        embeddings = torch.empty(len(texts), self.dimension)
        for batch in self._pack(texts):
            embeddings[sorted(batch.text_indices)] = self._forward(batch).float().cpu()
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

    def _embed(
        self, texts: Sequence[str], instructions: Sequence[str] | str, role: Role
    ) -> Iterator[tuple[Sequence[int], PackedBatch, Tensor]]:
        """The texts' positions, their tokens, and what the model makes of them, a row of tokens at a time."""
        for start in range(0, len(texts), WINDOW):
            window = range(start, min(start + WINDOW, len(texts)))
            own = instructions if isinstance(instructions, str) else [instructions[index] for index in window]
            for batch in self._pack(self._tokenize([texts[index] for index in window], own, role, start)):
                yield [window[index] for index in sorted(batch.text_indices)], batch, self._forward(batch)

    def _pack(self, texts: Sequence[TokenizedText]) -> list[PackedBatch]:
        """Rows of at most `max_tokens_per_batch` tokens."""
        return pack_texts(
            [text.token_ids for text in texts],
            tokens_per_batch(self.config.max_tokens_per_batch, self.model.device),
            [text.pooled_from for text in texts],
        )

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

    def _as_compared(self, vectors: Any, precision: Precision, size: int) -> np.ndarray:
        """Vectors [N, size] of float32 whose inner products are the model's similarities."""
        array = np.atleast_2d(vectors.cpu().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors))
        if array.dtype.kind != "f":
            if precision in ("float32", "float16"):
                raise ValueError(f"`similarity` got vectors of {array.dtype}: say their `precision`.")
            array = dequantize(array, precision, size, self.ranges_for(precision, size, self.config.normalize))
        array = array.astype(np.float32)
        if self.config.similarity == "cosine":
            array = array / np.linalg.norm(array, axis=1, keepdims=True).clip(min=1e-12)
        return array

    def _instructions(
        self, task: str | None, prompt: str | Sequence[str] | None, role: Role, count: int
    ) -> Sequence[str] | str:
        if prompt is not None:
            if not isinstance(prompt, str) and len(prompt) != count:
                raise ValueError(f"`prompt` must be one text or one for each of the {count} texts, got {len(prompt)}.")
            return prompt
        if task is None and role == "query":
            task = self.config.default_task
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
