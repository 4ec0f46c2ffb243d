"""The losses of `loss_norm: sequence` (fine-tuning) and `token` (pre-training) against LLaDA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafactory_embed.diffusion.noise import SCHEDULES, LossNorm, hide_tokens, times_from_uniforms
from llamafactory_embed.diffusion.noisy_texts import hideable_tokens, noisy_text, weigh_text
from llamafactory_embed.diffusion.texts import Text
from llamafactory_embed.model.families import find_family
from llamafactory_embed.model.token_predictor import CorruptedText, TokenPredictor, pack_corrupted_texts
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


def corrupt(row: dict[str, Any], norm: LossNorm) -> tuple[list[CorruptedText], float]:
    """The rows of a batch under the recorded draws, and what the sum of their losses is divided by."""
    texts, count = [], 0.0
    for number, ids in enumerate(row["input_ids"]):
        length = len(ids)
        prompt = row["prompt_lengths"][number] if row["kind"] == "sft" else 0
        hideable = hideable_tokens(Text(ids, [position < prompt for position in range(length)]))
        time = times_from_uniforms(torch.tensor(row["recorded_uniform_for_t"][number]), row["eps"])
        times = time.expand(length)
        torch.testing.assert_close(times, torch.tensor(row["p_mask"][number]))
        hidden = hide_tokens(hideable, times, torch.tensor(row["recorded_uniform_per_token"][number]), LINEAR)
        assert hidden.int().tolist() == row["masked_indices"][number], row["name"]
        mask = row["mask_token_id"]
        noisy = noisy_text(torch.tensor(ids), hidden, mask_token_id=mask, shift=False, block_size=None)
        assert noisy.token_ids.tolist() == row["noisy_batch"][number], row["name"]
        text, count_of_text = weigh_text(
            noisy, times, hideable, shift=False, schedule=LINEAR, weight="elbo", norm=norm
        )
        texts.append(text)
        count += count_of_text
    return texts, count


@golden_cases("llada/sft_loss")
def test_losses_and_gradients(case: GoldenCase, predictor: TokenPredictor) -> None:
    tolerance = case.data["tolerance"]
    for row in case.data["cases"]:
        predictor.zero_grad()
        texts, count = corrupt(row, NORM_OF_KIND[row["kind"]])
        scores = predictor(pack_corrupted_texts(texts))
        losses, loss = scores.losses, scores.loss / max(count, 1)
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
