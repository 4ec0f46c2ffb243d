"""The loss of `stage: ddm` against DiffuLLaMA's: corruption, annealed attention, shift, weights and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attention_patch import Backend, annealed_mask, annealing_ratio
from llamafactory_embed.diffusion.noise import SCHEDULES, LossNorm, hide_tokens, times_from_uniforms
from llamafactory_embed.diffusion.noisy_texts import hideable_tokens, noisy_text, weigh_text
from llamafactory_embed.diffusion.texts import Text
from llamafactory_embed.model.token_predictor import CorruptedText, TokenPredictor, pack_corrupted_texts
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare


LINEAR = SCHEDULES["linear"]


def corrupt(row: dict[str, Any], norm: LossNorm = "masked") -> tuple[list[CorruptedText], float]:
    """The rows of a batch under the recorded draws, and what the sum of their losses is divided by."""
    texts, count = [], 0.0
    sources = row.get("src_mask") or [None] * len(row["input_ids"])
    shift = row["shift"]
    for number, (ids, source) in enumerate(zip(row["input_ids"], sources, strict=True)):
        hideable = hideable_tokens(Text(ids, None if source is None else [bool(each) for each in source]))
        time = times_from_uniforms(torch.tensor(row["recorded_uniform_for_t"][number]), time_epsilon=1e-3)
        times = time.expand(len(ids))
        hidden = hide_tokens(hideable, times, torch.tensor(row["recorded_uniform_per_token"][number]), LINEAR)
        mask = row["mask_token_id"]
        noisy = noisy_text(torch.tensor(ids), hidden, mask_token_id=mask, shift=shift, block_size=None)
        text, count_of_text = weigh_text(
            noisy, times, hideable, shift=shift, schedule=LINEAR, weight="elbo", norm=norm
        )
        texts.append(text)
        count += count_of_text
    return texts, count


def score(model: TokenPredictor, row: dict[str, Any], norm: LossNorm) -> Tensor:
    """The loss of a batch, as the trainer computes it."""
    texts, count = corrupt(row, norm)
    return model(pack_corrupted_texts(texts, allowed=recorded_attention(row))).loss / max(count, 1)


def recorded_attention(row: dict[str, Any]) -> Tensor:
    return torch.tensor(row["attention_allowed"], dtype=torch.bool)[None, None]


def load_model(case: GoldenCase, folder: Path, backend: Backend) -> TokenPredictor:
    model = AutoModelForCausalLM.from_pretrained(case.copy_model(folder), dtype=torch.float32).eval()
    return TokenPredictor(model, shift=True, backend=backend)


@golden_cases("ddm/loss")
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_losses_and_gradients(case: GoldenCase, backend: Backend, tmp_path: Path) -> None:
    predictor = load_model(case, tmp_path / "model", backend)
    tolerance = case.data["tolerance"]
    for row in case.data["cases"]:
        predictor.shift = row["shift"]
        predictor.zero_grad()
        texts, _ = corrupt(row)
        assert [text.token_ids.tolist() for text in texts] == row["x_t"], row["name"]
        check_attention(row)

        loss = score(predictor, row, "masked")
        loss.backward()
        expected = row.get("correct_final_loss", row.get("final_loss_moved_only", row["final_loss"]))
        assert loss.item() == pytest.approx(expected, rel=tolerance["final_loss"]["rtol"]), row["name"]
        if row.get("original_gives_nan"):
            assert all(parameter.grad is not None for parameter in predictor.parameters())
            assert not any(parameter.grad.any() for parameter in predictor.parameters())
        elif not row.get("original_quirk"):
            check_gradients(predictor.backbone, row, case.data["embedding_parameter"].split(" ")[0], tolerance)


def check_attention(row: dict[str, Any]) -> None:
    """The recorded mask is one of the annealed masks of that ratio."""
    ratio = annealing_ratio(row["global_step"], row["anneal_steps"])
    assert ratio == pytest.approx(row["attn_mask_ratio"])
    recorded = torch.tensor(row["attention_allowed"], dtype=torch.bool)
    assert torch.equal(annealed_mask(len(recorded), ratio, draw=recorded)[0, 0], recorded)


def check_gradients(model: nn.Module, row: dict[str, Any], embedding: str, tolerance: dict[str, Any]) -> None:
    norms = dict(row.get("grad_norm_l2", {}))
    if "grad_norm_embedding" in row:
        norms[embedding] = row["grad_norm_embedding"]
    found = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    if "grad_norm_l2" in row:
        assert found.keys() == norms.keys(), row["name"]
    for name, norm in norms.items():
        assert found[name] == pytest.approx(norm, rel=tolerance["grad_norm"]["rtol"]), (row["name"], name)


@golden_cases("ddm/loss")
def test_cross_entropies(case: GoldenCase, tmp_path: Path) -> None:
    """Of each hidden token, with the weight of its time taken out; and the loss without weights."""
    predictor = load_model(case, tmp_path / "model", "sdpa")
    tolerance = case.data["tolerance"]["per_token_ce_before_masking"]
    compared = 0
    for row in case.data["cases"]:
        if "per_token_ce_before_masking" not in row:
            continue
        predictor.shift = row["shift"]
        texts, _ = corrupt(row)
        losses = predictor(pack_corrupted_texts(texts, allowed=recorded_attention(row))).losses
        all_entropies = torch.tensor(row["per_token_ce_before_masking"])
        hidden = torch.stack([text.labels for text in texts])[:, int(row["shift"]) :] >= 0
        torch.testing.assert_close(losses, all_entropies[hidden], **tolerance)
        if "unweighted_loss" in row and row["unweighted_loss"] != "nan" and not row.get("original_quirk"):
            assert losses.mean().item() == pytest.approx(row["unweighted_loss"], rel=1e-4)
        compared += len(losses)
    if compared == 0:
        nothing_to_compare("cross entropies")


@golden_cases("ddm/loss")
def test_the_bound_counts_every_token_that_could_be_hidden(case: GoldenCase, tmp_path: Path) -> None:
    """`loss_norm: token` is the same sum over another number."""
    predictor = load_model(case, tmp_path / "model", "sdpa")
    for row in case.data["cases"]:
        if row.get("original_gives_nan") or row.get("original_quirk"):
            continue
        predictor.shift = row["shift"]
        sources = row.get("src_mask") or [[0] * len(ids) for ids in row["input_ids"]]
        could_be_scored = sum(not each for source in sources for each in source[int(row["shift"]) :])
        expected = row["final_loss"] * sum(map(sum, row["loss_mask"])) / could_be_scored
        assert score(predictor, row, "token").item() == pytest.approx(expected, rel=1e-4), row["name"]
