"""The check that an exported folder serves what the checkpoint does: the programs it is meant for load it.

Single texts must agree within `TOLERANCE`: they are neither padded nor packed. In a batch float32 adds up in another
order, and some models (for instance ones not yet trained to see both sides) amplify that: there the programs may
differ `NOISE_FACTOR` times as much as our own packed batches differ from single texts.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from ..data.tokenization import TokenizedText
from ..encoder.encoder import Encoder, Role
from ..model.embedding import EmbeddingModel
from .serving import DOCUMENT, QUERY, Serving


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


TOLERANCE = 1e-5  # of a number in an embedding of unit length, in float32
NOISE_FACTOR = 3  # how much of our own noise in a batch others may show
LONGEST_EMBEDDED = 256  # a longer limit is checked by token ids alone: the forward is the same
MOST_TASKS = 3  # prompts that are tried; all of them are made by one template

SAMPLES = (
    "a",
    "elephant",
    "A large animal with a trunk.",
    "What is the difference between a llama and an alpaca, and which of the two has the longer ears?",
    "Größenwahn, naïveté — 大きな動物, слон: 3.14 % of U+1F418 🐘!",
    "def area(r):\n    return 3.14159 * r ** 2\n",
    "The elephant is the largest living land animal. It uses its trunk to breathe, drink and reach for food, and "
    "lives in herds that the oldest female leads from one water hole to the next, over paths that it has remembered "
    "for decades.",
)


@dataclass(frozen=True)
class Case:
    """Texts that are embedded in one way."""

    role: Role
    task: str | None
    prompt_name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """How the checkpoint embeds a case."""

    case: Case
    tokens: list[TokenizedText]
    embedded: int
    """Only the first texts are embedded."""
    vectors: np.ndarray
    """Each text embedded alone, [embedded, d], in float32 from the rounded weights."""
    packed: np.ndarray
    """The same texts in one packed batch."""

    @property
    def noise(self) -> float:
        """How much the order of additions changes in float32."""
        return difference(self.packed, self.vectors)


@dataclass(frozen=True)
class Agreement:
    """The largest differences to the checkpoint that the readers of a folder showed."""

    alone: float
    """Single texts."""
    in_batch: float
    """Padded batches."""


def require_sentence_transformers() -> None:
    """Called before anything is loaded: without it nothing can be checked."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            "An export is checked with sentence-transformers, which is not installed: "
            "pip install 'llamafactory-embed[eval]'."
        )


def expected_embeddings(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, serving: Serving) -> list[Expected]:
    """Embed the samples with the checkpoint itself."""
    encoder = Encoder(model, tokenizer)
    expected = []
    for case in make_cases(encoder, serving):
        instruction = "" if case.task is None else encoder.config.instructions[case.task]
        tokenize = encoder.tokenizer.queries if case.role == "query" else encoder.tokenizer.documents
        tokens = tokenize(case.texts, instruction)
        embedded = len(case.texts) if len(tokens[-1].token_ids) <= LONGEST_EMBEDDED else len(case.texts) - 1
        use: dict[str, Any] = {"task": case.task, "role": case.role, "dimensions": serving.dimensions}
        vectors = np.stack([encoder.encode(text, **use) for text in case.texts[:embedded]])
        packed = encoder.encode(case.texts[:embedded], **use)
        expected.append(Expected(case, tokens, embedded, vectors, packed))
    return expected


def make_cases(encoder: Encoder, serving: Serving) -> list[Case]:
    """Queries of some tasks, documents, and documents of a symmetric task; the last text of each is too long."""
    instructions = encoder.config.instructions
    query_task = next((task for task in instructions if serving.prompts[task] == serving.prompts[QUERY]), None)
    tasks = list(instructions)[:MOST_TASKS]
    named: list[tuple[Role, str | None, str]] = [("query", query_task, QUERY), ("document", None, DOCUMENT)]
    named += [("query", task, task) for task in tasks]
    named += [("document", task, task) for task in tasks if task in encoder.config.symmetric_tasks][:1]
    tokens = len(encoder.tokenizer.tokenizer(SAMPLES[-1], verbose=False)["input_ids"])
    too_long = " ".join([SAMPLES[-1]] * (math.ceil(serving.max_length / tokens) + 1))
    return [Case(*each, (*SAMPLES, too_long)) for each in named]


def check_folder(
    folder: Path, expected: Sequence[Expected], model: EmbeddingModel, serving: Serving, device: str
) -> Agreement:
    """Load the folder with sentence-transformers, with transformers alone and with `Encoder`; refuse the folder at the
    first that differs."""
    noise = max(each.noise for each in expected)
    readers = (_by_sentence_transformers, _by_transformers, _by_encoder)
    alone, in_batch = 0.0, 0.0
    for reader in readers:
        for seen in reader(folder, expected, model, serving, device):
            seen.check(TOLERANCE if seen.is_alone else TOLERANCE + NOISE_FACTOR * noise)
            if seen.is_alone:
                alone = max(alone, seen.difference)
            else:
                in_batch = max(in_batch, seen.difference)
    return Agreement(alone, in_batch)


@dataclass(frozen=True)
class Seen:
    """How a reader embeds a case."""

    reader: str
    case: Case
    difference: float
    is_alone: bool
    """Each text was embedded alone, or in the very batch of which `Expected.packed` knows the result."""

    def check(self, tolerance: float) -> None:
        if not self.difference <= tolerance:  # also for NaN
            raise ValueError(not_the_same(self.reader, self.case.role, self.case.prompt_name, self.difference))


def _by_sentence_transformers(
    folder: Path, expected: Sequence[Expected], model: EmbeddingModel, serving: Serving, device: str
) -> Iterator[Seen]:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(
        str(folder),
        device=device,
        local_files_only=True,
        trust_remote_code=serving.needs_code,
        model_kwargs={"dtype": torch.float32},
    )
    for each, vectors, is_alone in embed_as_users_do(loaded, expected, serving):
        yield Seen("sentence-transformers", each.case, difference(vectors, each.vectors), is_alone)


def embed_as_users_do(
    loaded: SentenceTransformer, expected: Sequence[Expected], serving: Serving
) -> Iterator[tuple[Expected, np.ndarray, bool]]:
    """The vectors of each case, text by text (True) and in one padded batch (False), by a folder that
    sentence-transformers has loaded; refuses other tokens than those of training."""
    for each in expected:
        case = each.case
        encode = loaded.encode_query if case.role == "query" else loaded.encode_document
        prompt = serving.prompts[case.prompt_name]
        for text, tokens in zip(case.texts, each.tokens, strict=True):
            features = loaded.preprocess([text], prompt=prompt, task=case.role)
            compare_tokens(features["input_ids"][0].tolist(), tokens, text, "sentence-transformers")
        texts = list(case.texts[: each.embedded])
        for batch_size in (1, len(texts)):
            vectors = encode(texts, prompt_name=case.prompt_name, batch_size=batch_size, show_progress_bar=False)
            yield each, vectors, batch_size == 1


def _by_transformers(
    folder: Path, expected: Sequence[Expected], model: EmbeddingModel, serving: Serving, device: str
) -> Iterator[Seen]:
    """The folder's own tokenizer and `AutoModel`, single texts and a padded batch, and the pooler that was trained."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    decoder = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    all_layers = model.pooler.uses_all_layers

    def embed(each: Expected, chosen: slice) -> np.ndarray:
        prompt = serving.prompts[each.case.prompt_name]
        limit = serving.query_length if each.case.role == "query" else serving.document_length
        batch = tokenizer(
            [prompt + text for text in each.case.texts[chosen]],
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            output = decoder(**batch, output_hidden_states=all_layers, use_cache=False)
        states = output.hidden_states if all_layers else (output.last_hidden_state,)
        vectors = pool_padded(model, states, batch["attention_mask"], each.tokens[chosen])
        vectors = vectors[:, : serving.dimensions]
        if model.embedding_config.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()

    for each in expected:
        alone = np.concatenate([embed(each, slice(index, index + 1)) for index in range(each.embedded)])
        yield Seen("transformers", each.case, difference(alone, each.vectors), True)
        yield Seen("transformers", each.case, difference(embed(each, slice(each.embedded)), each.vectors), False)


def pool_padded(
    model: EmbeddingModel, states: Sequence[Tensor], mask: Tensor, tokens: Sequence[TokenizedText]
) -> Tensor:
    """Padded states [B, L, d] → vectors [B, d], by the model's pooling, which reads texts end to end."""
    lengths = mask.sum(dim=1).tolist()
    pooled_tokens = None
    if any(text.pooled_from for text in tokens):
        pooled_tokens = torch.cat(
            [torch.arange(n) >= text.pooled_from for n, text in zip(lengths, tokens, strict=True)]
        )
    with torch.inference_mode():
        return model.pool([each[mask.bool()] for each in states], lengths, pooled_tokens)


def _by_encoder(
    folder: Path, expected: Sequence[Expected], model: EmbeddingModel, serving: Serving, device: str
) -> Iterator[Seen]:
    encoder = Encoder(folder, device=device, dtype=torch.float32)
    for each in expected:
        case = each.case
        texts = case.texts[: each.embedded]
        vectors = encoder.encode(texts, task=case.task, role=case.role, dimensions=serving.dimensions)
        yield Seen("Encoder", case, difference(vectors, each.packed), True)


def difference(vectors: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference between vectors, as a part of their length."""
    if vectors.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(vectors - expected) / np.linalg.norm(expected, axis=1, keepdims=True)))


def stacked(encoded: Any) -> np.ndarray:
    """What `encode` returns of some texts as one array: a vector a row, whichever text it is of."""
    return np.concatenate(encoded) if isinstance(encoded, list) else encoded


def check_same(reference: Encoder, loaded: Encoder, reader: str) -> None:
    """Two Encoders must embed documents, and queries of the first task, alike."""
    task = next(iter(reference.config.instructions), None)
    uses: tuple[tuple[Role, str | None], ...] = (("document", None), ("query", task))
    for role, prompt in uses:
        expected = stacked(reference.encode(SAMPLES, task=prompt, role=role))
        moved = difference(stacked(loaded.encode(SAMPLES, task=prompt, role=role)), expected)
        if not moved <= TOLERANCE:  # also for NaN
            raise ValueError(not_the_same(reader, role, prompt or "none", moved))


def not_the_same(reader: str, role: str, prompt: str, by: float) -> str:
    """The sentence about a reader that embeds differently."""
    return (
        f"The exported folder is not the same model: {reader} embeds {role} texts (prompt: {prompt}) differently, by "
        f"{by:.1e}; nothing was written."
    )


def compare_tokens(token_ids: list[int], tokens: TokenizedText, text: str, reader: str) -> None:
    """Refuse a reader that makes other tokens of a text."""
    if token_ids != tokens.token_ids:
        raise ValueError(
            f"The exported folder is not the same model: {reader} makes {len(token_ids)} tokens of the text "
            f"{text[:40]!r} where training made {len(tokens.token_ids)}, or others; nothing was written."
        )
