"""Dream's samplers: tokens after every step, numbers revealed, times, shifted logits (golden kind dream/generate)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.loop import denoise
from llamafactory_embed.sampling.schedules import falling_times, revealed_shares
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare
from tests.golden.denoising import History, NoDraws, RecordedDraws, left_padded, network_of


def make_canvas(sub: dict[str, Any]) -> Canvas:
    return left_padded(sub["input_ids"], sub.get("attention_mask"), sub["max_new_tokens"], sub["mask_token_id"])


def on_grid(numbers: list[float], masked: Tensor) -> Tensor:
    """One number for each masked position, row after row."""
    grid = torch.ones(masked.shape)
    grid[masked] = torch.tensor(numbers)
    return grid


def draws_of(sub: dict[str, Any], canvas: Canvas) -> Any:
    if not sub.get("rng_dependent"):
        return NoDraws()
    before = [sub["tokens_before_step_0"], *sub["history_after_each_step"]]
    masks = [(torch.tensor(tokens) == sub["mask_token_id"]) & canvas.generated for tokens in before]
    return RecordedDraws([on_grid(*pair) for pair in zip(sub["rng"]["uniforms_per_step"], masks, strict=False)])


@golden_cases("dream/generate")
def test_tokens_after_every_step(case: GoldenCase, tmp_path: Path) -> None:
    for sub in case.data["cases"]:
        canvas = make_canvas(sub)
        settings = SamplingSettings(
            steps=sub["steps"],
            algorithm=sub["alg"],
            temperature=sub.get("temperature") or 0.0,
            top_p=sub.get("top_p") or 1.0,
            top_k=sub.get("top_k") or 0,
            alg_temp=sub.get("alg_temp") or 0.0,
        )
        history = History(canvas)
        network = network_of(case, sub, tmp_path, shift=True)
        done = denoise(
            canvas, network, settings, draws_of(sub, canvas), banned_tokens=[sub["mask_token_id"]], watch=history
        )

        real = canvas.real
        steps = history.padded_to(settings.steps)
        for ours, theirs in zip(steps, sub["history_after_each_step"], strict=True):
            assert torch.equal(torch.tensor(ours)[real], torch.tensor(theirs)[real]), sub["name"]
        assert torch.equal(done.canvas.tokens[real], torch.tensor(sub["sequences"])[real]), sub["name"]
        masked = [
            (torch.tensor(tokens) == sub["mask_token_id"])[real].sum() for tokens in [canvas.tokens.tolist(), *steps]
        ]
        assert [int(a - b) for a, b in pairwise(masked)] == sub["tokens_revealed_per_step_whole_batch"], sub["name"]


@golden_cases("dream/generate")
def test_times_and_chances(case: GoldenCase) -> None:
    tolerance = case.data["tolerance"]["timesteps"]
    for sub in case.data["cases"]:
        if "timesteps" in sub:
            torch.testing.assert_close(
                falling_times(sub["steps"]), torch.tensor(sub["timesteps"]), atol=tolerance, rtol=0
            )
        if "p_transfer" in sub:
            torch.testing.assert_close(
                revealed_shares(sub["steps"]), torch.tensor(sub["p_transfer"]), atol=1e-6, rtol=0
            )


@golden_cases("dream/generate")
def test_shifted_logits(case: GoldenCase, tmp_path: Path) -> None:
    with_logits = [sub for sub in case.data["cases"] if "shifted_logits_at_step_0" in sub]
    if not with_logits:
        nothing_to_compare("shifted logits")
    tolerance = case.data["tolerance"]["shifted_logits"]
    for sub in with_logits:
        canvas = make_canvas(sub)
        network = network_of(case, sub, tmp_path, shift=True)
        logits = network.head(network.states(canvas.tokens, canvas.real, canvas.real))
        expected = torch.tensor(sub["shifted_logits_at_step_0"])[canvas.real]
        torch.testing.assert_close(logits, expected, **tolerance)
