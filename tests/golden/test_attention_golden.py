"""attention_patch against the numbers of DiffuLLaMA (annealed masks) and LLM2Vec (bidirectional hidden states)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from attention_patch import annealed_mask, annealing_ratio, mask_inputs, packed_inputs, patch_attention
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare
from tests.tiny_models import tiny_model


def part(case: GoldenCase, name: str) -> dict[str, Any]:
    """The sub-case of that name."""
    for entry in case.data["cases"]:
        if entry["name"] == name:
            return entry
    nothing_to_compare(name)


@golden_cases("ddm/anneal")
def test_ratio_schedule(case: GoldenCase) -> None:
    tolerance = case.data["tolerance"]["attn_mask_ratio"]
    for row in part(case, "ratio_schedule")["rows"]:
        ratio = annealing_ratio(row["global_step"], row["anneal_steps"])
        assert ratio == pytest.approx(row["attn_mask_ratio"], abs=tolerance)


@golden_cases("ddm/anneal")
def test_masks_from_recorded_draws(case: GoldenCase) -> None:
    values = case.data["additive_values"]
    assert values["allowed"] == 0
    for row in part(case, "masks_from_recorded_draws")["rows"]:
        length = row["seq_len"]
        draw = torch.tensor(row["recorded_bernoulli_draws"])
        expected = torch.tensor(row["allowed"], dtype=torch.bool)
        allowed = annealed_mask(length, row["ratio"], draw=draw)
        assert torch.equal(allowed, expected[None, None])
        with patch_attention(tiny_model("llama"), backend="eager") as patch:
            additive = mask_inputs(patch.model, allowed)["attention_mask"]
        assert torch.equal(additive == 0, expected[None, None])
        assert (additive[additive != 0] == torch.finfo(torch.float32).min).all()


@golden_cases("ddm/anneal")
def test_frequencies(case: GoldenCase) -> None:
    generator = torch.Generator().manual_seed(0)
    for row in part(case, "frequencies")["rows"]:
        length, ratio, draws = row["seq_len"], row["ratio"], row["draws"]
        masks = [annealed_mask(length, ratio, generator=generator)[0, 0] for _ in range(draws)]
        frequency = torch.stack(masks).double().mean(dim=0)
        ahead = torch.ones(length, length).triu(1).bool()
        assert (frequency[~ahead] == row["on_and_below_diagonal"]).all()
        error = (ratio * (1 - ratio) / draws) ** 0.5
        assert (frequency[ahead] - ratio).abs().max() <= 5 * error
        assert abs(float(frequency[ahead].mean()) - row["expected"]) <= 5 * error


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@golden_cases("llm2vec/hidden")
def test_bidirectional_hidden_states(case: GoldenCase, backend: Any, tmp_path: Path) -> None:
    """Padded and packed; LLM2Vec ignores sliding windows."""
    data = case.data
    model = AutoModel.from_pretrained(case.copy_model(tmp_path / "model"), dtype=torch.float32).eval()
    tolerance = {"atol": data["tolerance"]["atol"], "rtol": data["tolerance"]["rtol"]}
    with patch_attention(model, sliding_window="ignore", backend=backend), torch.no_grad():
        for batch in data["batches"]:
            tokens, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
            by_backend = batch["expected_last_hidden_state_of_real_tokens"]
            if backend not in by_backend:
                nothing_to_compare(f"states of `{backend}`")
            expected = [state for row in by_backend[backend] for state in row]
            padded = model(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]
            torch.testing.assert_close(padded, torch.tensor(expected), **tolerance)
            row, lengths = tokens[mask.bool()][None], mask.sum(dim=1).tolist()
            packed = model(input_ids=row, **packed_inputs(lengths)).last_hidden_state[0]
            torch.testing.assert_close(packed, torch.tensor(expected), **tolerance)
