"""The layout of sentence-transformers' MultiVectorEncoder: one vector a token, compared by MaxSim; and its check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..encoder.encoder import Encoder
from ..files import write_json
from ..model.embedding import EmbeddingModel
from .serving import Serving
from .verify import (
    LONGEST_EMBEDDED,
    NOISE_FACTOR,
    TOLERANCE,
    Agreement,
    Case,
    compare_tokens,
    difference,
    make_cases,
    not_the_same,
    stacked,
)


# Only releases that have a MultiVectorEncoder read the folder: its types have the names of these.
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
DENSE = "sentence_transformers.base.modules.dense.Dense"
MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
OF_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


def write_token_modules(
    folder: Path, dense: Sequence[tuple[dict[str, Any], dict[str, Tensor]]]
) -> list[dict[str, Any]]:
    """Write the folders of the modules after the language model, whose layers work on every token; return the content
    of modules.json. No token is skipped: all that are not padding were trained."""
    modules: list[tuple[str, str]] = [("", TRANSFORMER)]

    def add(name: str, kind: str, settings: dict[str, Any]) -> Path:
        path = f"{len(modules)}_{name}"
        modules.append((path, kind))
        (folder / path).mkdir()
        write_json(folder / path / "config.json", settings)
        return folder / path

    for settings, weights in dense:
        save_file(weights, add("Dense", DENSE, settings | OF_TOKENS) / "model.safetensors")
    add("MultiVectorMask", MASK, {"skiplist_words": [], "skiplist_tasks": ["document"], "keep_only_token_ids": None})
    add("Normalize", NORMALIZE, OF_TOKENS)
    return [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
    ]


def check_vector_sets(
    folder: Path, model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, serving: Serving, device: str
) -> Agreement:
    """Load the folder with sentence-transformers and with `Encoder`; tokens, vectors and MaxSim must be those of the
    checkpoint."""
    from sentence_transformers import MultiVectorEncoder

    reference = Encoder(model, tokenizer)
    reader = MultiVectorEncoder(
        str(folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    ours = Encoder(folder, device=device, dtype=torch.float32)
    alone, in_batch, seen = 0.0, 0.0, []
    for case, texts in _embedded_cases(reference, reader, serving):
        use: dict[str, Any] = {"task": case.task, "role": case.role, "dimensions": serving.dimensions}
        expected = [reference.encode(text, **use) for text in texts]
        packed = reference.encode(texts, **use)
        allowed = TOLERANCE + NOISE_FACTOR * difference(stacked(packed), stacked(expected))
        encode = reader.encode_query if case.role == "query" else reader.encode_document
        found = {
            batch_size: _as_arrays(encode(list(texts), prompt_name=case.prompt_name, batch_size=batch_size))
            for batch_size in (1, len(texts))
        }
        alone = max(alone, _check("sentence-transformers", case, found[1], expected, TOLERANCE))
        in_batch = max(in_batch, _check("sentence-transformers", case, found[len(texts)], expected, allowed))
        alone = max(alone, _check("Encoder", case, ours.encode(texts, **use), packed, TOLERANCE))
        seen.append((case, found[1], expected))
    for case, found_queries, queries in seen:
        for _, found_documents, documents in (each for each in seen if each[0].role == "document"):
            similarities = np.asarray(reader.similarity(found_queries, found_documents))
            moved = float(np.abs(similarities - reference.similarity(queries, documents)).max())
            if not moved <= TOLERANCE:  # also for NaN
                raise ValueError(not_the_same("MaxSim of sentence-transformers", case.role, case.prompt_name, moved))
    return Agreement(alone, in_batch)


def _embedded_cases(reference: Encoder, reader: Any, serving: Serving) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """The cases with those of their texts that are embedded; all texts must be the same tokens."""
    for case in make_cases(reference, serving):
        tokens = reference.tokenize(case.texts, task=case.task, role=case.role)
        for text, own in zip(case.texts, tokens, strict=True):
            features = reader.preprocess([text], prompt=serving.prompts[case.prompt_name], task=case.role)
            compare_tokens(features["input_ids"][0].tolist(), own, text, "sentence-transformers")
        is_short = len(tokens[-1].token_ids) <= LONGEST_EMBEDDED
        yield case, case.texts if is_short else case.texts[:-1]


def _check(reader: str, case: Case, found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> float:
    moved = difference(stacked(found), stacked(expected))
    if not moved <= tolerance:  # also for NaN
        raise ValueError(not_the_same(reader, case.role, case.prompt_name, moved))
    return moved


def _as_arrays(texts: Sequence[Tensor]) -> list[np.ndarray]:
    return [text.cpu().numpy() for text in texts]
