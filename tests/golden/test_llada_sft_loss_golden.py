"""The losses of `loss_norm: sequence` (fine-tuning) and `token` (pre-training) against LLaDA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_embed.diffusion.batch import pack_noisy_texts
from llamafactory_embed.diffusion.corruption import hide_tokens
from llamafactory_embed.diffusion.noisy_texts import NoisyText, hideable_tokens, noisy_text
from llamafactory_embed.diffusion.objective import LossNorm, loss_terms
from llamafactory_embed.diffusion.schedules import SCHEDULES, times_from_uniforms
from llamafactory_embed.diffusion.texts import Text
from llamafactory_embed.model.families import find_family
from llamafactory_embed.model.token_predictor import TokenPredictor
from tests.golden.case_files import GoldenCase, golden_cases


LINEAR = SCHEDULES["linear"]
NORM_OF_KIND: dict[str, LossNorm] = {"sft": "sequence", "pretrain": "token"}


@pytest.fixture
def predictor(case: GoldenCase, tmp_path: Path) -> TokenPredictor:
    folder = case.copy_model(tmp_path / "model", case.model_folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    family = find_family(model.config)
    assert family is not None
    return TokenPredictor(model.eval(), shift=family.shift)


def corrupt(row: dict[str, Any]) -> list[NoisyText]:
    texts = []
    for number, ids in enumerate(row["input_ids"]):
        length = len(ids)
        prompt = row["prompt_lengths"][number] if row["kind"] == "sft" else 0
        clean = torch.tensor(ids)
        hideable = hideable_tokens(Text(ids, [position < prompt for position in range(length)]))
        time = times_from_uniforms(torch.tensor(row["recorded_uniform_for_t"][number]), row["eps"])
        torch.testing.assert_close(time.expand(length), torch.tensor(row["p_mask"][number]))
        uniforms = torch.tensor(row["recorded_uniform_per_token"][number])
        corruption = hide_tokens(clean, hideable, time.expand(length), uniforms, LINEAR, row["mask_token_id"])
        assert corruption.hidden.int().tolist() == row["masked_indices"][number], row["name"]
        assert corruption.token_ids.tolist() == row["noisy_batch"][number], row["name"]
        texts.append(noisy_text(clean, hideable, corruption, shift=False, block_size=None))
    return texts


def score(predictor: TokenPredictor, texts: list[NoisyText], norm: LossNorm) -> tuple[Tensor, Tensor]:
    """Cross entropies of the hidden tokens, and the loss."""
    terms = [
        loss_terms(text.times, text.labels >= 0, text.scorable, schedule=LINEAR, weight="elbo", norm=norm)
        for text in texts
    ]
    batches = pack_noisy_texts(texts, [term.coefficients for term in terms])
    scores = predictor(batches)
    return scores.losses, scores.loss / max(sum(term.count for term in terms), 1)


@golden_cases("llada/sft_loss")
def test_losses_and_gradients(case: GoldenCase, predictor: TokenPredictor) -> None:
    tolerance = case.data["tolerance"]
    for row in case.data["cases"]:
        predictor.zero_grad()
        texts = corrupt(row)
        losses, loss = score(predictor, texts, NORM_OF_KIND[row["kind"]])
        loss.backward()
        assert loss.item() == pytest.approx(row["loss"], rel=tolerance["loss"]["rtol"]), row["name"]

        hidden = torch.stack([text.labels for text in texts]) >= 0
        if "per_token_ce_all_positions" in row:
            entropies = torch.tensor(row["per_token_ce_all_positions"])
            torch.testing.assert_close(losses, entropies[hidden], **tolerance["per_token_ce_all_positions"])
        found = {name: parameter.grad.norm().item() for name, parameter in predictor.backbone.named_parameters()}
        if not hidden.any():
            assert loss.item() == 0
            assert not any(found.values())
        if "grad_norm_l2" in row:
            assert found == pytest.approx(row["grad_norm_l2"], rel=tolerance["grad_norm_l2"]["rtol"]), row["name"]
