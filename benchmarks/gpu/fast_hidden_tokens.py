"""Steps of `stage: mntp` and `stage: ddm` with a vocabulary of 150 thousand: the head is a third of their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llamafactory_embed.diffusion.noise import SCHEDULES, NoiseDraws, hide_tokens
from llamafactory_embed.diffusion.noisy_texts import noise_units, noisy_text, weigh_text
from llamafactory_embed.model.token_predictor import (
    NO_LABEL,
    CorruptedText,
    TokenBatch,
    TokenPredictor,
    pack_corrupted_texts,
)

from .embedding_step import optimized
from .fast_contrastive import FILLS, record_step
from .machine import matmul_peak, peak_gib, seconds_of
from .record import Aim
from .shapes import QWEN3, TINY_QWEN3, build_model, mixed_lengths, random_texts, training_operations
from .steps import Bench


AIM = Aim(at_least=40.0)
HIDDEN_SHARE = 0.2  # of mntp


def measure(bench: Bench) -> None:
    """Both stages, both kinds of lengths."""
    peak = matmul_peak(bench.device, bench.size(8192, 128))
    for stage, corrupt in (("ddm", corrupt_for_ddm), ("mntp", corrupt_for_mntp)):
        for kind, fill in FILLS.items():
            bench.record.attempt(
                f"{stage}, {kind}", lambda s=stage, c=corrupt, k=kind, f=fill: one(bench, s, c, k, f, peak)
            )


def one(
    bench: Bench,
    stage: str,
    corrupt: Callable[[Sequence[list[int]], int], tuple[list[CorruptedText], float]],
    kind: str,
    fill: float,
    peak: float,
) -> None:
    """A whole step, with clipping and AdamW."""
    shape = bench.size(QWEN3, TINY_QWEN3)
    longest = bench.size(512, 16)
    count = max(2, round(bench.size(16_384, 200) / (longest * fill)))
    texts, loss_count = corrupt(
        random_texts(mixed_lengths(count, longest, fill), shape.vocabulary - 1), shape.vocabulary - 1
    )
    model = TokenPredictor(
        build_model(shape, bench.device, torch.bfloat16, head=True), shift=True, backend=bench.backend
    ).train()
    batches = pack_corrupted_texts(texts)

    def forward_and_backward() -> torch.Tensor:
        loss = model(batches).loss / loss_count
        loss.backward()
        return loss.detach()

    step = optimized(model, forward_and_backward)
    before = float(step())
    gib = peak_gib(step, bench.device)
    seconds = seconds_of(step, bench.device, repeats=bench.size(7, 1), warm_up=bench.size(2, 0))
    bench.record.check(f"{stage}, {kind}: the loss is a number", before == before, f"{before:.4f}")
    lengths, scored = [len(text) for text in texts], count_scored(batches)
    operations = training_operations(shape, lengths, scored=scored)
    record_step(
        bench.record,
        f"{stage}, {shape.name}, {kind}, {count} rows",
        lengths,
        seconds,
        gib,
        operations / seconds / peak,
        AIM,
    )


def count_scored(batches: Sequence[TokenBatch]) -> int:
    """Positions whose logits are needed."""
    return sum(len(batch.scored(shift=True)) for batch in batches)


def corrupt_for_ddm(texts: Sequence[list[int]], mask: int) -> tuple[list[CorruptedText], float]:
    """As the stage does: a time for each text, tokens hidden with that chance, the bound's weights."""
    draws = NoiseDraws(seed=0, rows_per_step=len(texts), antithetic=True, time_epsilon=1e-3)
    result, count = [], 0.0
    for place, text in enumerate(texts):
        everything = torch.ones(len(text), dtype=torch.bool)
        times, uniforms = draws.draw(0, place, noise_units(len(text), None))
        hidden = hide_tokens(everything, times, uniforms, SCHEDULES["linear"])
        noisy = noisy_text(torch.tensor(text), hidden, mask_token_id=mask, shift=True, block_size=None)
        weighed, scorable = weigh_text(
            noisy, times, everything, shift=True, schedule=SCHEDULES["linear"], weight="elbo", norm="token"
        )
        result.append(weighed)
        count += scorable
    return result, count


def corrupt_for_mntp(texts: Sequence[list[int]], mask: int) -> tuple[list[CorruptedText], float]:
    """A fixed share of each text, every hidden token counting 1."""
    chance = torch.Generator().manual_seed(0)
    result, count = [], 0.0
    for text in texts:
        tokens = torch.tensor(text)
        hidden = torch.rand(len(text), generator=chance) < HIDDEN_SHARE
        hidden[0] = False  # no position predicts it
        hidden[-1] = True  # so that every text has one
        labels = tokens.masked_fill(~hidden, NO_LABEL)
        result.append(CorruptedText(tokens.masked_fill(hidden, mask), labels))
        count += float(hidden.sum())
    return result, count
