"""A training step of `stage: ddm` with a vocabulary of 150,000, against a step that computes all logits.

The other side does what dllm's MDLM trainer and DiffuLLaMA's do: padded rows, all logits in float32, a
cross entropy for each, and then a weight of 0 for all that is not hidden. Both have the same weights, texts, times and
hidden tokens, and the same attention; the loss is the bound on both sides. Forward and backward, no optimizer.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import ModelSize, log_normal_lengths, save_model
from .processes import Variant, take_turns
from .results_file import Result, check_equal, ratio, table_of


TITLE = "Diffusion training step with a large vocabulary"
FULL, RAGGED = "full rows", "rows of different lengths"
OURS, ALL_LOGITS = "ours", "all logits"


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    vocabulary: int = 150_000
    """Of the weights; the texts use the tokens of `model.vocabulary`."""
    rows: int = 8
    row_length: int = 128
    fill: float = 0.5  # of the rows of different lengths


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Rows without padding, as in pre-training, and ragged ones, as in fine-tuning."""
    model = save_large_vocabulary(folder / "model", settings)
    mean = round(settings.row_length * settings.fill)
    lengths = {
        FULL: [settings.row_length] * settings.rows,
        RAGGED: log_normal_lengths(settings.rows, mean, settings.fill),
    }
    cases = {
        case: {
            name: Variant(f"benchmarks.ddm_step:{function}", {"model": str(model), **make_rows(settings, each)})
            for name, function in ((OURS, "ours"), (ALL_LOGITS, "all_logits"))
        }
        for case, each in lengths.items()
    }
    runs = take_turns(cases, repeats)
    for case in cases:
        check_equal(runs, case, tolerance=1e-4)
    figures = [
        figure
        for case in cases
        for figure in (
            ratio(f"speed, {case}", runs, case, ALL_LOGITS, OURS, "seconds", at_least=1.5),
            ratio(f"peak memory, {case}", runs, case, OURS, ALL_LOGITS, "peak_mib", at_most=0.5),
        )
    ]
    columns = {
        "tokens/s": lambda median: f"{median('tokens_per_second'):.0f}",
        "seconds": lambda median: f"{median('seconds'):.2f}",
        "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
        "hidden": lambda median: f"{median('hidden'):.0%}",
        "loss": lambda median: f"{median('first_loss'):.5f}",
    }
    return Result(dataclasses.asdict(settings), runs, figures, table_of(runs, columns))


def save_large_vocabulary(folder: Path, settings: Settings) -> Path:
    """The benchmarks' model with an embedding, tied to the head, for as many tokens as Qwen has."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save_model(folder, settings.model))
    torch.manual_seed(0)
    model.resize_token_embeddings(settings.vocabulary, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def make_rows(settings: Settings, lengths: list[int]) -> dict[str, Any]:
    """Tokens, and the times and hidden tokens that a step of `stage: ddm` draws for them."""
    import torch

    from llamafactory_embed.diffusion.noise import SCHEDULES, NoiseDraws, hide_tokens
    from llamafactory_embed.diffusion.noisy_texts import noise_units

    chance = torch.Generator().manual_seed(0)
    draws = NoiseDraws(seed=0, rows_per_step=len(lengths), antithetic=True, time_epsilon=1e-3)
    rows: dict[str, Any] = {"token_ids": [], "hidden": [], "times": []}
    for place, length in enumerate(lengths):
        tokens = torch.randint(settings.vocabulary - 1, (length,), generator=chance)
        times, uniforms = draws.draw(0, place, noise_units(length, None))
        everything = torch.ones(length, dtype=torch.bool)
        rows["token_ids"].append(tokens.tolist())
        rows["hidden"].append(hide_tokens(everything, times, uniforms, SCHEDULES["linear"]).tolist())
        rows["times"].append(float(times[0]))
    return rows | {"mask_token_id": settings.vocabulary - 1}


def ours(request: dict[str, Any]) -> dict[str, Any]:
    """The module that the stage trains, on packed texts."""
    import torch
    from transformers import AutoModelForCausalLM

    from llamafactory_embed.diffusion.noise import SCHEDULES
    from llamafactory_embed.diffusion.noisy_texts import noisy_text, weigh_text
    from llamafactory_embed.model.packed import TOKENS_PER_TRAINING_BATCH_ON_CPU
    from llamafactory_embed.model.token_predictor import TokenPredictor, pack_corrupted_texts

    model = TokenPredictor(AutoModelForCausalLM.from_pretrained(request["model"]), shift=True, backend="sdpa").train()

    def loss() -> torch.Tensor:
        texts, count = [], 0.0
        for tokens, hidden, time_of_row in zip(request["token_ids"], request["hidden"], request["times"], strict=True):
            noisy = noisy_text(
                torch.tensor(tokens),
                torch.tensor(hidden),
                mask_token_id=request["mask_token_id"],
                shift=True,
                block_size=None,
            )
            text, tokens_of_text = weigh_text(
                noisy,
                torch.full((len(tokens),), time_of_row),
                torch.ones(len(tokens), dtype=torch.bool),
                shift=True,
                schedule=SCHEDULES["linear"],
                weight="elbo",
                norm="token",
            )
            texts.append(text)
            count += tokens_of_text
        return model(pack_corrupted_texts(texts, TOKENS_PER_TRAINING_BATCH_ON_CPU)).loss / count

    return timed(loss, model, request)


def all_logits(request: dict[str, Any]) -> dict[str, Any]:
    """Padded rows, the logits of every position, and a mask over the losses."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from attention_patch import patch_attention

    model = AutoModelForCausalLM.from_pretrained(request["model"]).train()
    patch_attention(model, "bidirectional", backend="sdpa")
    longest = max(map(len, request["token_ids"]))

    def padded(rows: list[list[Any]], filler: Any) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    def loss() -> torch.Tensor:
        clean, hidden = padded(request["token_ids"], 0), padded(request["hidden"], False)  # [B, L]
        real = padded([[True] * len(row) for row in request["token_ids"]], False)
        noisy = torch.where(hidden, request["mask_token_id"], clean)
        logits = model(input_ids=noisy, attention_mask=real.long(), use_cache=False).logits.float()  # [B, L, V]
        losses = cross_entropy(logits[:, :-1].flatten(0, 1), clean[:, 1:].flatten(), reduction="none")
        weights = hidden[:, 1:] / torch.tensor(request["times"])[:, None]
        return (losses.view_as(weights) * weights).sum() / real[:, 1:].sum()

    return timed(loss, model, request)


def timed(loss: Any, model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """A step to warm up, then one that counts."""
    from .memory import PeakMemory

    loss().backward()
    model.zero_grad()
    memory = PeakMemory()
    start = time.perf_counter()
    found = loss()
    found.backward()
    seconds = time.perf_counter() - start
    tokens = sum(map(len, request["token_ids"]))
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_mib": memory.above_baseline(),
        "first_loss": found.item(),
        "hidden": sum(map(sum, request["hidden"])) / tokens,
    }
