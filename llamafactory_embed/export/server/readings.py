"""A text read otherwise than in training: every mistake that a server can make as a change of a `Reading`.

The checkpoint itself embeds under a reading, so what a server does is found by comparing vectors, not by asking it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attention_patch import patch_attention

from ...data.prompts import PromptedText
from ...data.tokenization import find_special_tokens, tokenize_texts
from ...encoder.encoder import Encoder
from ...model.packed import forward_packed, pack_texts, split_texts


UNCUT = 2**31
Side = Literal["right", "left", "right, with the closing tokens"]

# States [n, d] of a text and its first token after the prompt → what is pooled. In the words of a sentence.
POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "the mean of all tokens": lambda states, start: states.mean(0),
    "the mean without the first token": lambda states, start: states[1:].mean(0),
    "the mean without the last token": lambda states, start: states[:-1].mean(0),
    "the mean without the prompt": lambda states, start: states[start:].mean(0),
    "the weighted mean": lambda states, start: (states * torch.arange(1, len(states) + 1)[:, None]).sum(0),
    "the last token": lambda states, start: states[-1],
    "the last token but one": lambda states, start: states[-2:-1].sum(0),
    "the first token": lambda states, start: states[0],
    "the maximum of all tokens": lambda states, start: states.max(0).values,
}


@dataclass(frozen=True)
class Reading:
    """How texts are read; by default as the checkpoint was trained."""

    flipped_attention: bool = False
    prefix: str = ""
    """What stands before the text."""
    strips: bool = False
    """Whether white space around prompt and text is removed."""
    opening: bool = True
    """Whether the tokenizer's first special tokens are there."""
    closing: Literal["trained", "missing", "added"] = "trained"
    """The special tokens after the text: EOS, where the pooling reads it."""
    pooling: str | None = None
    """A name of `POOLINGS`; None: the trained one."""
    limit: int = UNCUT
    """Most tokens of a text."""
    cut: Side = "right"
    """Where a longer one loses what it has too much."""


class Change(NamedTuple):
    """One mistake: what it is, and the reading with it."""

    sentence: str
    reading: Reading

    def onto(self, other: Reading, trained: Reading) -> Reading:
        """The same mistake beside another one."""
        changed = {name: value for name, value in vars(self.reading).items() if value != getattr(trained, name)}
        return replace(other, **changed)


class ReadingEncoder:
    """Embeds under readings with one checkpoint in memory."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer.tokenizer
        self.config = encoder.config
        self.special = find_special_tokens(self.tokenizer, self.config.append_eos)
        self._states: dict[tuple[object, ...], tuple[list[list[Tensor]], list[int]]] = {}
        self.can_flip = True
        try:
            self._set_attention("bidirectional" if self.config.causal else "causal")
        except ValueError:  # an encoder has one kind of attention
            self.can_flip = False
        self._set_attention(self.config.attention)

    def count_tokens(self, texts: Sequence[str], prefix: str) -> list[int]:
        """The tokens of each text, however many they are."""
        return [len(token_ids) for token_ids, _ in self._tokens(texts, Reading(prefix=prefix))]

    def embed(self, texts: Sequence[str], reading: Reading) -> np.ndarray:
        """Vectors [N, d] as the pooling leaves them."""
        states, starts = self._read(texts, reading)
        if reading.pooling is None:
            return np.stack([self._pool_as_trained(each, start) for each, start in zip(states, starts, strict=True)])
        pool = POOLINGS[reading.pooling]
        pooled = []
        for each, start in zip(states, starts, strict=True):
            vector = pool(each[-1], start)
            pooled.append(vector if bool(vector.isfinite().all()) else each[-1].mean(0))  # nothing was left to pool
        return torch.stack(pooled).numpy()

    def _pool_as_trained(self, states: Sequence[Tensor], start: int) -> np.ndarray:
        model = self.encoder.model
        length = len(states[-1])
        pooled_tokens = torch.arange(length) >= start if self.config.skip_instruction else None
        with torch.inference_mode():
            on_device = [each.to(model.device) for each in states]
            return model.pooler(on_device, [length], pooled_tokens)[0].float().cpu().numpy()

    def _read(self, texts: Sequence[str], reading: Reading) -> tuple[list[list[Tensor]], list[int]]:
        """The states of each text, [layers][n, d], and its first token after the prompt; poolings share them."""
        key = (*texts, replace(reading, pooling=None))
        if key not in self._states:
            tokens = self._tokens(texts, reading)
            model = self.encoder.model
            batch = pack_texts([token_ids for token_ids, _ in tokens])[0]
            if reading.flipped_attention:
                self._set_attention("bidirectional" if self.config.causal else "causal")
            try:
                with torch.inference_mode():
                    layers = forward_packed(model.decoder, batch, all_layers=model.pooler.uses_all_layers)
            finally:
                if reading.flipped_attention:
                    self._set_attention(self.config.attention)
            by_layer = [split_texts(layer.float().cpu(), batch, len(texts)) for layer in layers]
            by_text = [list(each) for each in zip(*by_layer, strict=True)]
            self._states[key] = by_text, [start for _, start in tokens]
        return self._states[key]

    def _set_attention(self, mode: Literal["bidirectional", "causal"]) -> None:
        patch_attention(self.encoder.model.backbone, mode, sliding_window=self.config.sliding_window)

    def _tokens(self, texts: Sequence[str], reading: Reading) -> list[tuple[list[int], int]]:
        """Token ids of each text, and the position of the first one after the prompt."""
        prompted = [PromptedText(reading.prefix, text) for text in texts]
        if reading.strips:
            prompted = [PromptedText(each.prefix.lstrip(), each.text.rstrip()) for each in prompted]
        whole = tokenize_texts(
            self.tokenizer,
            prompted,
            max_length=UNCUT,
            append_eos=self.config.append_eos,
            skip_instruction=True,
        )
        before, after = len(self.special.leading), len(self.special.trailing)
        opening = list(self.special.leading) if reading.opening else []
        closing = {
            "trained": list(self.special.trailing),
            "missing": [],
            "added": [*self.special.trailing, self.tokenizer.eos_token_id],
        }[reading.closing]
        found = []
        for text in whole:
            body = text.token_ids[before : len(text.token_ids) - after]
            room = max(1, reading.limit - len(opening) - len(closing))
            kept = body[-room:] if reading.cut == "left" else body[:room]
            row = [*opening, *kept, *closing]
            if reading.cut == "right, with the closing tokens" and len(body) > room:
                row = [*opening, *body][: reading.limit]
            start = min(text.pooled_from - before + len(opening), len(row) - 1)
            found.append((row or text.token_ids, max(0, start)))
        return found


def list_changes(reader: ReadingEncoder, trained: Reading, prompts: Mapping[str, str]) -> Iterator[Change]:
    """Every mistake that this check knows, beside the reading of training; those of cutting are `list_cuts`."""
    config, tokenizer = reader.config, reader.tokenizer
    attention = "embeds causally"
    if config.causal:
        attention = "attends to the whole text, where the checkpoint attends to what comes before only"
    if reader.can_flip:
        yield Change(f"the server {attention}", replace(trained, flipped_attention=True))
    if trained.prefix:
        yield Change("the prompt is missing", replace(trained, prefix=""))
        yield Change("the prompt is written twice", replace(trained, prefix=trained.prefix * 2))
    by_prompt = {
        prompt: name for name, prompt in reversed(list(prompts.items()))
    }  # `query` may be that of a task, too
    for prompt, name in by_prompt.items():
        if prompt and prompt != trained.prefix:
            yield Change(
                f"the server writes the prompt `{name}` before the text",
                replace(trained, prefix=prompt + trained.prefix),
            )
            if trained.prefix:
                yield Change(f"the prompt `{name}` stands in place of the right one", replace(trained, prefix=prompt))
    yield Change("white space around a text is removed", replace(trained, strips=True))
    if reader.special.leading:
        opening = tokenizer.convert_ids_to_tokens(list(reader.special.leading))
        yield Change(f"{' '.join(opening)} is missing before the text", replace(trained, opening=False))
    if reader.special.trailing:
        closing = tokenizer.convert_ids_to_tokens(list(reader.special.trailing))
        yield Change(f"{' '.join(closing)} is missing after the text", replace(trained, closing="missing"))
    if tokenizer.eos_token_id is not None:
        yield Change(
            f"{tokenizer.eos_token} is added after the text, where training had "
            f"{'one' if reader.special.trailing else 'none'}",
            replace(trained, closing="added"),
        )
    for name in POOLINGS:
        yield Change(describe_pooling(name, config.pooling), replace(trained, pooling=name))


def list_cuts(reading: Reading, limit: int, candidates: Sequence[int]) -> Iterator[Change]:
    """How a text beyond the limit may have been shortened otherwise."""
    yield Change("texts that are too long lose their beginning, not their end", replace(reading, cut="left"))
    yield Change(
        "texts that are too long lose the tokens that close a text",
        replace(reading, cut="right, with the closing tokens"),
    )
    for other in dict.fromkeys(candidates):
        if other != limit:
            yield Change(f"texts are cut after {other} tokens, not after {limit}", replace(reading, limit=other))
    yield Change(f"texts are not cut, the checkpoint reads {limit} tokens", replace(reading, limit=UNCUT))


def describe_pooling(name: str, trained: str) -> str:
    """The sentence for a pooling in place of the trained one."""
    left_out = {"the mean without the first token": "first token", "the mean without the last token": "last token"}
    if trained == "mean" and name in left_out:
        return f"mean pooling leaves out the {left_out[name]}"
    if trained in ("mean", "weighted_mean") and name == "the mean without the prompt":
        return "mean pooling leaves out the prompt"
    if trained == "mean" and name == "the mean of all tokens":
        return "the prompt takes part in the mean, which the checkpoint leaves out"
    return f"the server pools {name}, the checkpoint `{trained}`"
