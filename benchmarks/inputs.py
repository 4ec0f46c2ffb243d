"""What is measured on: a small bidirectional Qwen2, and texts of given lengths cut from the bundled prose."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from .processes import ROOT


PROSE = ROOT / "data" / "prose"
WORDNET = ROOT / "data" / "wordnet"


@dataclass(frozen=True)
class ModelSize:
    """A Qwen2 of this shape with random weights."""

    layers: int = 6
    hidden_size: int = 384
    intermediate_size: int = 1024
    heads: int = 6
    key_value_heads: int = 2
    vocabulary: int = 8192
    longest: int = 1024


def prose_paragraphs() -> list[str]:
    """All bundled prose, in order."""
    paragraphs = []
    for name in ("train", "heldout"):
        lines = (PROSE / f"{name}.jsonl").read_text("utf-8").splitlines()
        paragraphs += [" ".join(json.loads(line)["text"].split()) for line in lines]
    return paragraphs


def save_model(folder: Path, size: ModelSize, seed: int = 0) -> Path:
    """A model folder that any tool loads: `is_causal: false` makes it bidirectional wherever transformers does."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = train_tokenizer(size.vocabulary, size.longest)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=size.longest,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        is_causal=False,
        # Weights large enough for attention to matter: with the usual 0.02 all texts would have nearly the same
        # embedding, and equal losses would prove nothing.
        initializer_range=1.5 / math.sqrt(size.hidden_size),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.config.is_causal = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(vocabulary: int, longest: int) -> Any:
    """A byte-level BPE tokenizer of the bundled prose; it puts no special tokens around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prose_paragraphs(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", model_max_length=longest
    )


def log_normal_lengths(count: int, mean: float, fill: float) -> list[int]:
    """Lengths at even quantiles of the log-normal distribution whose mean is `fill` times the longest: padded to the
    longest, a batch of them is filled to that share. A fill of 1 gives equal lengths."""
    if fill >= 1:
        return [round(mean)] * count
    normal = [NormalDist().inv_cdf((index + 0.5) / count) for index in range(count)]

    def fill_of(sigma: float) -> float:
        return sum(math.exp(sigma * (z - normal[-1])) for z in normal) / count

    low, high = 0.0, 20.0  # the fill falls with sigma
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fill_of(middle) > fill else (low, middle)
    return [max(1, round(mean / fill * math.exp(low * (z - normal[-1])))) for z in normal]


def texts_of_lengths(tokenizer: Any, lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Different pieces of prose that have exactly these numbers of tokens."""
    words = " ".join(prose_paragraphs()).split()
    starts = _starts(len(words), random.Random(seed))
    seen: set[str] = set()
    texts = []
    for length in lengths:
        for start in starts:
            piece = " ".join(words[start : start + length])  # a word has at least one token
            encoded = tokenizer(piece, return_offsets_mapping=True)
            if len(encoded["input_ids"]) < length:
                continue
            text = piece[: encoded["offset_mapping"][length - 1][1]]
            if text not in seen and len(tokenizer(text)["input_ids"]) == length and text == text.strip():
                seen.add(text)
                texts.append(text)
                break
    return texts


def _starts(count: int, rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randrange(count)


@dataclass(frozen=True)
class TripletSizes:
    """Triplets whose queries, positives and negatives all have the same distribution of lengths in every batch."""

    rows: int  # of one batch
    batches: int
    mean: int
    fill: float


def make_triplets(tokenizer: Any, sizes: TripletSizes, seed: int = 0) -> list[dict[str, str]]:
    """The rows, batch after batch."""
    rng = random.Random(seed)
    lengths = log_normal_lengths(sizes.rows, sizes.mean, sizes.fill)
    columns: dict[str, list[int]] = {"query": [], "positive": [], "negative": []}
    for _ in range(sizes.batches):
        for column in columns.values():
            column += rng.sample(lengths, len(lengths))
    flat = [length for column in columns.values() for length in column]
    texts = texts_of_lengths(tokenizer, flat, seed)
    count = sizes.rows * sizes.batches
    return [{name: texts[position * count + row] for position, name in enumerate(columns)} for row in range(count)]
