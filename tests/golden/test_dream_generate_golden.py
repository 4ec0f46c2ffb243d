"""Dream's samplers: tokens after every step, numbers revealed, times, shifted logits (golden kind dream/generate)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_embed.model import families  # noqa: F401  registers Dream
from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.loop import denoise
from llamafactory_embed.sampling.network import LanguageModelNetwork, Network
from llamafactory_embed.sampling.schedules import falling_times, revealed_shares
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.golden.case_files import GoldenCase, golden_cases
from tests.golden.denoising import FormulaNetwork, History, NoDraws, RecordedDraws


def make_canvas(sub: dict[str, Any]) -> Canvas:
    """Prompts without the padding that the case has at their left, which our canvas puts there itself."""
    padding = sub["attention_mask"] or [[1] * len(row) for row in sub["input_ids"]]
    prompts = [
        [token for token, real in zip(row, mask, strict=True) if real]
        for row, mask in zip(sub["input_ids"], padding, strict=True)
    ]
    return Canvas.of_prompts(prompts, sub["max_new_tokens"], sub["mask_token_id"])


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


def load_network(case: GoldenCase, sub: dict[str, Any], folder: Path) -> Network:
    if sub["model"].startswith("formula"):
        return FormulaNetwork(sub["model"], sub["formula_vocab"], shift=True)
    weights = case.folder_of(case.data["weights"]).parent
    return LanguageModelNetwork(
        AutoModelForCausalLM.from_pretrained(case.copy_model(folder / "model", weights)).eval(), shift=True
    )


@golden_cases("dream/generate")
def test_tokens_after_every_step(case: GoldenCase, tmp_path: Path) -> None:
    for sub in case.data["cases"]:
        canvas = make_canvas(sub)
        settings = SamplingSettings(
            steps=sub["steps"],
            algorithm=sub["alg"],
            temperature=sub["temperature"],
            top_p=sub["top_p"] or 1.0,
            top_k=sub["top_k"] or 0,
            alg_temp=sub["alg_temp"] or 0.0,
        )
        history = History(canvas)
        network = load_network(case, sub, tmp_path)
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
    found = [sub for sub in case.data["cases"] if "shifted_logits_at_step_0" in sub]
    assert found
    tolerance = case.data["tolerance"]["shifted_logits"]
    for sub in found:
        canvas = make_canvas(sub)
        network = load_network(case, sub, tmp_path)
        logits = network.head(network.states(canvas.tokens, canvas.real, canvas.real))
        expected = torch.tensor(sub["shifted_logits_at_step_0"])[canvas.real]
        torch.testing.assert_close(logits, expected, **tolerance)
