"""Forward and backward of one batch, packed against padded, both with the attention of `attention_patch`."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import ModelSize, log_normal_lengths, save_model, texts_of_lengths
from .processes import Variant, take_turns
from .results_file import Result, check_equal, ratio, table_of


TITLE = "Packed forward against padded forward"
LOG_NORMAL, EQUAL = "log-normal lengths", "equal lengths"


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    texts: int = 96
    mean_length: int = 90
    fill: float = 1 / 3
    warm_up_texts: int = 24


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Log-normal and equal lengths, each packed and padded."""
    from transformers import AutoTokenizer

    model = save_model(folder / "model", settings.model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    cases: dict[str, dict[str, Variant]] = {}
    for case, fill in {LOG_NORMAL: settings.fill, EQUAL: 1.0}.items():
        texts = texts_of_lengths(tokenizer, log_normal_lengths(settings.texts, settings.mean_length, fill))
        request = {
            "model": str(model),
            "token_ids": [tokenizer(text)["input_ids"] for text in texts],
            "warm_up_texts": settings.warm_up_texts,
        }
        cases[case] = {
            kind: Variant("benchmarks.packed_forward:run", request | {"kind": kind}) for kind in ("packed", "padded")
        }
    runs = take_turns(cases, repeats)
    for case in cases:
        check_equal(runs, case)
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[
            ratio("speed, log-normal lengths", runs, LOG_NORMAL, "padded", "packed", "seconds", at_least=2.5),
            ratio("speed, equal lengths", runs, EQUAL, "padded", "packed", "seconds", at_least=0.95),
            ratio("peak memory, log-normal lengths", runs, LOG_NORMAL, "packed", "padded", "peak_mib"),
            ratio("peak memory, equal lengths", runs, EQUAL, "packed", "padded", "peak_mib"),
        ],
        table=table_of(
            runs,
            {
                "seconds": lambda median: f"{median('seconds'):.2f}",
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
                "filled": lambda median: f"{median('filled'):.0%}",
            },
        ),
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process: load, warm up on a few texts, then one forward and backward of all."""
    import torch
    from transformers import AutoModel

    from attention_patch import patch_attention
    from llamafactory_embed.model.packed import forward_packed, mean_states, pack_texts

    from .memory import PeakMemory

    model = AutoModel.from_pretrained(request["model"])
    patch_attention(model, "bidirectional", backend="sdpa")
    torch.manual_seed(0)
    direction = torch.randn(model.config.hidden_size) / model.config.hidden_size**0.5

    def packed(texts: list[list[int]]) -> torch.Tensor:
        (batch,) = pack_texts(texts)
        (states,) = forward_packed(model, batch)
        return mean_states(states, batch.lengths)  # [B, d], longest text first

    def padded(texts: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, texts))
        ids = torch.tensor([text + [model.config.pad_token_id] * (longest - len(text)) for text in texts])  # [B, L]
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def forward_backward(texts: list[list[int]]) -> float:
        embeddings = {"packed": packed, "padded": padded}[request["kind"]](texts)
        loss = torch.nn.functional.normalize(embeddings, dim=1).matmul(direction).square().sum()
        loss.backward()
        model.zero_grad()
        return float(loss.detach())

    texts: list[list[int]] = request["token_ids"]
    forward_backward(texts[:: max(1, len(texts) // request["warm_up_texts"])])
    memory = PeakMemory()
    start = time.perf_counter()
    loss = forward_backward(texts)
    seconds = time.perf_counter() - start
    tokens = sum(map(len, texts))
    return {
        "seconds": seconds,
        "peak_mib": memory.above_baseline(),
        "first_loss": loss,
        "filled": tokens / (len(texts) * max(map(len, texts))),
    }
