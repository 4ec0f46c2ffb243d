"""DiffuLLaMA's two samplers: tokens at every network call, scores and counts (golden kind ddm/sample)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_embed.sampling.canvas import Canvas
from llamafactory_embed.sampling.guesses import make_guesses, plain_score
from llamafactory_embed.sampling.loop import denoise
from llamafactory_embed.sampling.network import LanguageModelNetwork, Network
from llamafactory_embed.sampling.schedules import kept_counts
from llamafactory_embed.sampling.settings import SamplingSettings
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare
from tests.golden.denoising import FormulaNetwork, History, NoDraws, RecordedDraws


ALGORITHMS = {"trainer": "topk_low_score", "root": "random_keep"}


class NoiseAtTheStart:
    """With shift, the original has no guess for the first position: it puts the initial noise there, with the score of
    the first raw guess. This network makes the noise the first position's most probable token."""

    waits_for_blocks = False
    rows_per_chunk = 1000

    def __init__(self, network: Network, noise: Tensor) -> None:
        self.network = network
        self.noise = noise  # [B]

    def states(self, tokens: Tensor, real: Tensor, queried: Tensor) -> Tensor:
        logits = self.network.head(self.network.states(tokens, real, queried)).clone()
        rows, columns = queried.nonzero(as_tuple=True)
        for index in (columns == 0).nonzero()[:, 0].tolist():
            best, wished = int(logits[index].argmax()), int(self.noise[rows[index]])
            logits[index, [best, wished]] = logits[index, [wished, best]]
        return logits

    def head(self, states: Tensor) -> Tensor:
        return states

    def enter_block(self, start: int, stop: int) -> None:
        self.network.enter_block(start, stop)

    def keep_rows(self, kept: Tensor) -> None:
        self.noise = self.noise[kept]
        self.network.keep_rows(kept)


def load_network(case: GoldenCase, sub: dict[str, Any], folder: Path) -> Network:
    if sub["model"].startswith("formula"):
        return FormulaNetwork(sub["model"], sub["formula_vocab"], sub["shift"])
    copied = case.copy_model(folder, case.folder_of(case.data["weights"][sub["model"]]))
    return LanguageModelNetwork(AutoModelForCausalLM.from_pretrained(copied).eval(), shift=sub["shift"])


@golden_cases("ddm/sample")
def test_tokens_of_every_call(case: GoldenCase, tmp_path: Path) -> None:
    for sub in case.data["cases"]:
        given = torch.tensor(sub["input_ids"])
        source = torch.tensor(sub["src_mask"]).bool() if sub.get("src_mask") else torch.zeros_like(given).bool()
        canvas = Canvas.of_texts(given.tolist(), (~source).tolist(), sub["mask_token_id"])
        network = load_network(case, sub, tmp_path / sub["model"].replace(":", "_"))
        if sub["shift"]:
            network = NoiseAtTheStart(network, given[:, 0])
        draws = NoDraws()
        if sub["sampler"] == "root":
            recorded = sub["rng"]["recorded_uniforms_per_update"]
            everything = torch.zeros(given.shape)  # the last call takes all that is left
            draws = RecordedDraws([*map(torch.tensor, recorded), everything])

        settings = SamplingSettings(
            steps=sub["diffusion_steps"], algorithm=ALGORITHMS[sub["sampler"]], logits_temp=sub["logits_temp"]
        )
        history = History(canvas)
        start = canvas.tokens.tolist()
        done = denoise(canvas, network, settings, draws, banned_tokens=[sub["mask_token_id"]], watch=history)

        calls = [start, *history.padded_to(settings.steps)]
        assert calls[: settings.steps] == sub["xt_at_each_model_call"], sub["name"]
        assert done.canvas.tokens[:, 1 if sub["shift"] else 0 :].tolist() == sub["output"], sub["name"]


@golden_cases("ddm/sample")
def test_counts_that_stay_masked(case: GoldenCase) -> None:
    compared = 0
    for sub in case.data["cases"]:
        given = torch.tensor(sub["input_ids"])
        source = torch.tensor(sub["src_mask"]).bool() if sub.get("src_mask") else torch.zeros_like(given).bool()
        width = (~source).sum(dim=-1).tolist()
        steps = [sub["diffusion_steps"]] * len(width)
        for index, expected in enumerate(sub.get("keep_masked_count_per_update", [])):
            assert kept_counts(width, [index] * len(width), steps) == expected, sub["name"]
            compared += 1
    if compared == 0:
        nothing_to_compare("counts")


@golden_cases("ddm/sample")
def test_scores_of_every_call(case: GoldenCase, tmp_path: Path) -> None:
    tolerance = case.data["tolerance"]["scores"]["atol"]
    compared = 0
    for sub in case.data["cases"]:
        expected = sub.get("scores_after_each_model_call_but_the_last", [])
        if sub["sampler"] != "trainer" or not expected:
            continue
        given = torch.tensor(sub["input_ids"])
        source = torch.tensor(sub["src_mask"]).bool() if sub.get("src_mask") else torch.zeros_like(given).bool()
        network = load_network(case, sub, tmp_path / sub["model"].replace(":", "_"))
        for tokens, scores in zip(sub["xt_at_each_model_call"], expected, strict=False):
            logits = network.head(network.states(torch.tensor(tokens), torch.ones_like(source), ~source))
            ours = plain_score(make_guesses(logits / sub["logits_temp"]))
            torch.testing.assert_close(ours, torch.tensor(scores)[~source], atol=tolerance, rtol=0, msg=sub["name"])
            compared += len(ours)
    if compared == 0:
        nothing_to_compare("scores")
