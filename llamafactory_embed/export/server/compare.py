"""Send a server the texts of the export's check and find what it does otherwise than the checkpoint.

Every text is sent alone, and all of them once more in one request: what changes then is padding, or order. Where the
vectors differ, the checkpoint embeds the same texts under every mistake that `readings` knows, then under every two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from ...encoder.encoder import Encoder
from ..serving import Serving, plan_serving
from ..verify import NOISE_FACTOR, TOLERANCE, Case, make_cases
from .client import ServerClient, ServerRefusalError
from .command import ServerCheckOptions
from .readings import UNCUT, Change, Reading, ReadingEncoder, list_changes, list_cuts


# A mistake must explain that much of the difference to be named.
CLEARER = 3.0
# Where programs like to cut texts, in tokens; the limits of the checkpoint and what the server counts are tried, too.
USUAL_LIMITS = (128, 256, 384, 512, 1024, 2048)
PLURALS = {"query": "queries", "document": "documents"}
LONGEST_READ = 2048  # tokens of a text that is embedded here, too: a limit beyond is not checked


@dataclass
class Comparison:
    """What was found. The server is as the checkpoint if `differences` is empty."""

    differences: dict[str, list[str]] = field(default_factory=dict)
    """Sentence → the uses (queries, documents, …) in which it was seen."""
    remarks: list[str] = field(default_factory=list)
    largest: float = 0.0
    """Largest difference of a number in a vector of unit length."""
    texts: int = 0

    def add(self, sentence: str, use: str) -> None:
        """A difference in one use."""
        self.differences.setdefault(sentence, []).append(use)

    def describe(self) -> list[str]:
        """Lines for the terminal."""
        lines = [f"DIFFERS  {sentence} ({'; '.join(uses)})." for sentence, uses in self.differences.items()]
        if not lines:
            kind = "as in float32" if self.largest <= TOLERANCE else "as in half precision, or with other kernels"
            lines = [
                f"ok  The same vectors as the checkpoint's: {self.texts} texts, {self.largest:.1e} at most, {kind}."
            ]
        return lines + [f"note  {remark}" for remark in self.remarks]


def compare_server(
    folder: str | Path, server: str, options: ServerCheckOptions, http: httpx.Client | None = None
) -> Comparison:
    """Compare a running server with a checkpoint. `http` is a client to use in place of one for the address."""
    client = (
        ServerClient(http, options.model)
        if http is not None
        else ServerClient.open(server, options.model, options.api_key, options.timeout)
    )
    encoder = Encoder(folder, device=options.device, dtype=torch.float32)
    encoder.config.require_one_vector("A server of embeddings")
    serving = plan_serving(encoder.config, encoder.dimension, options.query_task, options.dimensions)
    comparer = _Comparer(client, encoder, serving, options.tolerance)
    cases = {(case.role, serving.prompts[case.prompt_name]): case for case in reversed(make_cases(encoder, serving))}
    for case in reversed(cases.values()):  # `query` may be the prompt of a task, too
        comparer.compare(case)
    return comparer.found


class _Comparer:
    def __init__(self, client: ServerClient, encoder: Encoder, serving: Serving, tolerance: float) -> None:
        self.client = client
        self.encoder = encoder
        self.reader = ReadingEncoder(encoder)
        self.serving = serving
        self.tolerance = tolerance
        self.found = Comparison()

    def compare(self, case: Case) -> None:
        """One use of the model: queries of a task, or documents."""
        use = f"{PLURALS[case.role]}, prompt `{case.prompt_name}`"
        limit = self.serving.query_length if case.role == "query" else self.serving.document_length
        if not self.client.is_ours:
            limit = self.serving.max_length  # they know one limit, as the export says
        prompt = self.serving.prompts[case.prompt_name]
        trained = Reading(prefix=prompt, limit=limit)
        lengths = self.reader.count_tokens(case.texts, prompt)
        long = [text for text, length in zip(case.texts, lengths, strict=True) if length > limit]
        # What a server with another limit may cut as well is no help in finding what it does to all texts.
        short = [text for text, length in zip(case.texts, lengths, strict=True) if length <= limit // 2]
        short = short or [text for text, length in zip(case.texts, lengths, strict=True) if length <= limit]
        if not short:
            self.found.remarks.append(f"Not checked: no text fits into {limit} tokens with its prompt ({use}).")
            return

        vectors = self._ask_alone(short, case)
        reading = self._explain(short, vectors, trained, use)
        self._check_together(short, vectors, case, use)
        self._check_lengths(short, vectors, trained, use)
        if reading is not None and long:
            self._check_cut(long[0], case, reading, use)

    # ------------------------------ asking ------------------------------

    def _ask_alone(self, texts: Sequence[str], case: Case) -> np.ndarray:
        self.found.texts += len(texts)
        return np.concatenate([self._ask([text], case) for text in texts])

    def _ask(self, texts: Sequence[str], case: Case) -> np.ndarray:
        """Our own server is told what the texts are for; others get them with the prompt in front."""
        if self.client.is_ours:
            fields: dict[str, Any] = {"input_type": case.role}
            fields |= {} if case.task is None else {"task": case.task}
            fields |= {} if self.serving.dimensions is None else {"dimensions": self.serving.dimensions}
            return self.client.embed(texts, fields).vectors
        prompt = self.serving.prompts[case.prompt_name]
        return self.client.embed([prompt + text for text in texts], {}).vectors

    # ------------------------------ comparing ------------------------------

    def _explain(self, texts: Sequence[str], served: np.ndarray, trained: Reading, use: str) -> Reading | None:
        """The reading of the server, None where none was found."""
        served = self._check_size(served, use)

        def difference_of(reading: Reading) -> float:
            return difference_of_directions(served, self._cut(self.reader.embed(texts, reading)))

        plain = difference_of(trained)
        if plain <= TOLERANCE:
            self.found.largest = max(self.found.largest, plain)
            return trained
        singles = list(list_changes(self.reader, trained, self.serving.prompts))
        for changes in (((each,) for each in singles), itertools.combinations(singles, 2)):
            best = self._find_best(changes, trained, difference_of)
            if best is not None and best[0] <= min(self.tolerance, plain / CLEARER):
                moved, names, reading = best
                self.found.largest = max(self.found.largest, moved)
                for name in names:
                    self.found.add(name, use)
                return reading
            if plain <= self.tolerance:
                break  # half precision: two mistakes at once would not be as small
        if plain <= self.tolerance:
            self.found.largest = max(self.found.largest, plain)
            return trained
        self.found.largest = max(self.found.largest, plain)
        self.found.add("the vectors differ for a reason that this check does not know", use)
        return None

    def _find_best(
        self, candidates: Iterable[Sequence[Change]], trained: Reading, difference_of: Any
    ) -> tuple[float, list[str], Reading] | None:
        best: tuple[float, list[str], Reading] | None = None
        for changes in candidates:
            reading = trained
            for change in changes:
                reading = change.onto(reading, trained)
            if len(changes) == 2 and changes[0].onto(changes[1].reading, trained) != reading:
                continue  # both change the same thing
            moved = difference_of(reading)
            if best is None or moved < best[0] - TOLERANCE:  # of two that are alike, the first
                best = moved, [change.sentence for change in changes], reading
        return best

    def _check_size(self, served: np.ndarray, use: str) -> np.ndarray:
        """What can be compared of vectors of another size."""
        size = self.serving.dimensions or self.encoder.dimension
        if served.shape[1] != size:
            self.found.add(f"the vectors have {served.shape[1]} numbers, the checkpoint's {size}", use)
        return served[:, :size]

    def _cut(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, : self.serving.dimensions]

    def _check_lengths(self, texts: Sequence[str], served: np.ndarray, trained: Reading, use: str) -> None:
        lengths = np.linalg.norm(served, axis=1)
        is_unit = bool(np.all(np.abs(lengths - 1) <= max(self.tolerance, 1e-3)))
        if self.encoder.config.normalize and not is_unit:
            self.found.add("the vectors are not of unit length, the checkpoint's are", use)
        if not self.encoder.config.normalize and is_unit:
            expected = np.linalg.norm(self._cut(self.reader.embed(texts, trained)), axis=1)
            if np.any(np.abs(expected - 1) > 1e-3):
                self.found.add("the vectors are brought to unit length, the checkpoint's are not", use)

    def _check_together(self, texts: Sequence[str], alone: np.ndarray, case: Case, use: str) -> None:
        """All texts in one request: the vectors must be those of single texts, in the same order."""
        together = self._ask(texts, case)
        moved = difference_of_directions(together, alone)
        if moved <= TOLERANCE:
            return
        ours = np.stack([self.encoder.encode(text, task=case.task, role=case.role) for text in texts])
        noise = difference_of_directions(self.encoder.encode(texts, task=case.task, role=case.role), ours)
        allowed = self.tolerance if self.found.largest > TOLERANCE else TOLERANCE + NOISE_FACTOR * noise
        if moved <= allowed:
            return
        order = np.argmax(of_unit_length(together) @ of_unit_length(alone).T, axis=1)
        if len(set(order)) == len(order) and difference_of_directions(together, alone[order]) <= allowed:
            self.found.add("several texts of a request come back in another order", use)
        elif moved > self.tolerance:
            self.found.largest = max(self.found.largest, moved)
            self.found.add("a text's vector changes with the other texts of the request: padding takes part", use)
        else:
            self.found.remarks.append(f"In a request of several texts vectors move by {moved:.1e} ({use}).")

    def _check_cut(self, text: str, case: Case, reading: Reading, use: str) -> None:
        """A text beyond the limit, once what the server does to all texts is known."""
        whole = self.reader.count_tokens([text], reading.prefix)[0]
        if reading.limit > LONGEST_READ:
            self.found.remarks.append(f"Not checked: where texts are cut, at {reading.limit} tokens ({use}).")
            return
        try:
            served = self._cut(self._ask_alone([text], case))
        except ServerRefusalError as refusal:
            self.found.remarks.append(f"Texts of more than {reading.limit} tokens are refused ({use}): {refusal}")
            return
        served = served[:, : self.encoder.dimension]

        def difference_of(other: Reading) -> float:
            return difference_of_directions(served, self._cut(self.reader.embed([text], other)))

        plain = difference_of(reading)
        if plain <= TOLERANCE or (plain <= self.tolerance and self.found.largest > TOLERANCE):
            self.found.largest = max(self.found.largest, plain)
            return
        config = self.encoder.config
        limits = [
            config.query_max_length,
            config.document_max_length,
            *USUAL_LIMITS,
            reading.limit - 1,
            reading.limit + 1,
        ]
        limits = [each for each in limits if each < whole] + self._counted([text], case)
        cuts = [(change,) for change in list_cuts(reading, reading.limit, limits) if self._can_read(change, whole)]
        best = self._find_best(cuts, reading, difference_of)
        if best is not None and best[0] <= min(self.tolerance, plain / CLEARER):
            self.found.add(best[1][0], use)
        elif plain > self.tolerance:
            self.found.largest = max(self.found.largest, plain)
            self.found.add(
                f"texts beyond {reading.limit} tokens are shortened in a way that this check does not know", use
            )

    def _can_read(self, change: Change, whole: int) -> bool:
        """Whether the checkpoint itself can read as much."""
        most = getattr(self.encoder.model.config, "max_position_embeddings", None) or LONGEST_READ
        return (whole if change.reading.limit == UNCUT else change.reading.limit) <= most

    def _counted(self, texts: Sequence[str], case: Case) -> list[int]:
        """How many tokens the server says that it has read of them."""
        prompt = "" if self.client.is_ours else self.serving.prompts[case.prompt_name]
        tokens = self.client.embed([prompt + text for text in texts], {}).tokens
        return [] if tokens is None or not 0 < tokens <= LONGEST_READ else [tokens]


def of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def difference_of_directions(vectors: np.ndarray, others: np.ndarray) -> float:
    """The largest difference of a number, both sides brought to unit length; infinite for NaN."""
    if vectors.shape[1] != others.shape[1]:
        shared = min(vectors.shape[1], others.shape[1])
        vectors, others = vectors[:, :shared], others[:, :shared]
    return float(np.nan_to_num(np.max(np.abs(of_unit_length(vectors) - of_unit_length(others))), nan=np.inf))
