"""LLaDA's sampler with blocks and guidance: tokens after every step and counts (golden kind llada/generate)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.loop import denoise, split_steps
from llamafactory_embed.sampling.network import GuidedNetwork
from llamafactory_embed.sampling.schedules import counts_in_equal_parts
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.golden.case_files import GoldenCase, golden_cases
from tests.golden.denoising import History, NoDraws, left_padded, network_of


def make_canvas(sub: dict[str, Any]) -> Canvas:
    return left_padded(sub["prompt"], sub.get("attention_mask"), sub["gen_length"], sub["mask_token_id"])


@golden_cases("llada/generate")
def test_tokens_after_every_step(case: GoldenCase, tmp_path: Path) -> None:
    for sub in case.data["cases"]:
        canvas = make_canvas(sub)
        settings = SamplingSettings(
            steps=sub["steps"],
            algorithm=sub["remasking"],
            temperature=sub.get("temperature") or 0.0,
            block_length=sub["block_length"],
            cfg_scale=sub.get("cfg_scale") or 0.0,
        )
        network = network_of(case, sub, tmp_path, shift=False)
        if settings.cfg_scale > 0:
            network = GuidedNetwork(network, network, settings.cfg_scale, canvas.generated, sub["mask_token_id"])
        history = History(canvas)
        done = denoise(canvas, network, settings, NoDraws(), banned_tokens=[sub["mask_token_id"]], watch=history)

        real = canvas.real
        for ours, theirs in zip(history.padded_to(settings.steps), sub["history_after_each_step"], strict=True):
            assert torch.equal(torch.tensor(ours)[real], torch.tensor(theirs)[real]), sub["name"]
        assert torch.equal(done.canvas.tokens[real], torch.tensor(sub["sequences"])[real]), sub["name"]


@golden_cases("llada/generate")
def test_steps_and_counts_of_blocks(case: GoldenCase) -> None:
    for sub in case.data["cases"]:
        blocks = split_steps(sub["steps"], sub["gen_length"] // sub["block_length"])
        assert set(blocks) == {sub["steps_per_block"]}, sub["name"]
        counts = [counts_in_equal_parts([sub["block_length"]], [step], [blocks[0]])[0] for step in range(blocks[0])]
        # the cases write the counts of all blocks, or once those of one
        assert sub["tokens_per_step_in_each_block"][: len(counts)] == counts, sub["name"]
