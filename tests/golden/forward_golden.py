"""How the forward passes of the diffusion families are compared with the numbers of the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

import llamafactory_embed.model.families  # noqa: F401  (makes transformers know Dream and LLaDA)
from attention_patch import packed_inputs, patch_attention
from tests.golden.case_files import GoldenCase


def load_model(case: GoldenCase, folder: Path) -> Any:
    """The case's checkpoint, as LLaMA-Factory loads it; every weight must find its place."""
    case.copy_model(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def inputs_of(part: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: torch.tensor(part[name]) for name in names if part.get(name) is not None}


def check_forward(case: GoldenCase, backend: Any, folder: Path) -> None:
    """Padded batches: last hidden states, logits, their mean, and each layer's states where they are recorded."""
    model = load_model(case, folder)
    model.set_attn_implementation(backend)
    tolerance = case.data["tolerance"]["logits_and_hidden"]
    for part in case.data["cases"]:
        real = torch.tensor(part["compare_positions"]).bool()
        with torch.no_grad():
            output = model(**inputs_of(part), output_hidden_states=True)
        pairs = [(output.hidden_states[-1], part["last_hidden_state"])]
        if "logits" in part:
            pairs.append((output.logits, part["logits"]))
        if "hidden_states_per_layer" in part:
            pairs += zip(output.hidden_states, part["hidden_states_per_layer"], strict=True)
        for states, expected in pairs:
            torch.testing.assert_close(states[real], torch.tensor(expected)[real], **tolerance)
        if "mean_pooled" not in part:
            continue
        weights = real.unsqueeze(-1) / real.sum(dim=1)[:, None, None]
        pooled = (output.hidden_states[-1] * weights).sum(dim=1)
        torch.testing.assert_close(pooled, torch.tensor(part["mean_pooled"]), **tolerance)


def check_packed(case: GoldenCase, backend: Any, folder: Path) -> None:
    """The decoder alone, on the real tokens of each batch in one row without padding.

    Positions begin at 0 in every text, as they do in the cases up to a constant, which rotary embeddings do not see.
    """
    load_model(case, folder)
    decoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tolerance = case.data["tolerance"]["logits_and_hidden"]
    with patch_attention(decoder, backend=backend), torch.no_grad():
        for part in case.data["cases"]:
            real = torch.tensor(part["compare_positions"]).bool()
            tokens = torch.tensor(part["input_ids"])[real]
            states = decoder(input_ids=tokens[None], **packed_inputs(real.sum(dim=1).tolist())).last_hidden_state
            torch.testing.assert_close(states[0], torch.tensor(part["last_hidden_state"])[real], **tolerance)
