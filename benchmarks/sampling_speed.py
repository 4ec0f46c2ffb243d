"""Sampling with a cache and parallel decoding against the plain loop, on a small model that has learned its task.

The task: a pattern of random letters is given, and goes on. The plain loop reveals one token a step; the other sampler
whatever it is sure of, computing the block only. Both go block by block, both are greedy and marked by exact match.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Variant, take_turns
from .results_file import Result, ratio, table_of


TITLE = "Sampling with cache and threshold against the plain loop"
CASE = "a pattern goes on"
PLAIN, FAST = "plain loop", "dual cache, threshold 0.9"
LETTERS = 64
BOS, EOS, MASK = LETTERS, LETTERS + 1, LETTERS + 2


@dataclass(frozen=True)
class Settings:
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    period: int = 8
    new_tokens: int = 128
    block_length: int = 32
    training_steps: int = 2000
    training_rows: int = 8
    learning_rate: float = 3e-3
    prompts: int = 16


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Train the model once, then let both samplers take turns."""
    train(settings, folder / "model")
    request = {"model": str(folder / "model"), "settings": dataclasses.asdict(settings)}
    changes: dict[str, dict[str, Any]] = {PLAIN: {}, FAST: {"confidence_threshold": 0.9, "cache": "dual"}}
    variants = {
        name: Variant("benchmarks.sampling_speed:run", request | {"changes": change})
        for name, change in changes.items()
    }
    runs = take_turns({CASE: variants}, repeats)
    matches = {run["variant"]: run["exact_match"] for run in runs}
    if matches[FAST] < matches[PLAIN]:
        raise RuntimeError(f"The faster sampler writes worse texts: exact match {matches}.")
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[ratio("tokens a second", runs, CASE, FAST, PLAIN, "tokens_per_second", at_least=4.0)],
        table=table_of(
            runs,
            {
                "tokens a second": lambda median: f"{median('tokens_per_second'):.0f}",
                "forwards": lambda median: f"{median('forwards'):.0f}",
                "exact match": lambda median: f"{median('exact_match'):.0f} %",
            },
        ),
    )


def patterns(settings: Settings, rows: int, seed: int) -> Any:
    """Texts of BOS and a pattern that is repeated, [rows, 1 + period + new tokens]."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([torch.randperm(LETTERS, generator=chance) for _ in range(rows)])
    pattern = shuffled[:, : settings.period]  # no letter twice, so that each says which one follows
    times = -(-(settings.period + settings.new_tokens) // settings.period)
    whole = pattern.repeat(1, times)[:, : settings.period + settings.new_tokens]
    return torch.cat([torch.full((rows, 1), BOS), whole], dim=1)


def train(settings: Settings, folder: Path) -> None:
    """A masked diffusion model of the task, and a tokenizer whose tokens are the letters."""
    import torch
    from tokenizers import Tokenizer, models
    from torch.nn.functional import cross_entropy
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from attention_patch import patch_attention
    from llamafactory_embed.model.mask_token import MaskedTokenRecord

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=MASK + 1,
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=settings.training_steps)
    with patch_attention(model, "bidirectional"):
        for step in range(settings.training_steps):
            text = patterns(settings, settings.training_rows, seed=step + 1)
            hidden = torch.rand(text.shape) < torch.rand(len(text), 1).clamp(min=0.1)
            hidden[:, : settings.period + 1] = False
            logits = model(input_ids=text.where(~hidden, MASK), use_cache=False).logits[hidden]
            loss = cross_entropy(logits, text[hidden])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    model.save_pretrained(folder)
    vocabulary = {chr(0x4E00 + letter): letter for letter in range(LETTERS)} | {
        "<s>": BOS,
        "</s>": EOS,
        "<mask>": MASK,
    }
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<s>")),
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    ).save_pretrained(folder)
    MaskedTokenRecord(mask_token="<mask>", mask_token_id=MASK, shift=False).save(folder)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One side, in a process of its own."""
    from llamafactory_embed.sampling.checkpoint import load_sampler
    from llamafactory_embed.sampling.settings import SamplingSettings

    settings = Settings(**request["settings"])
    sampling = SamplingSettings(
        steps=settings.new_tokens,
        max_new_tokens=settings.new_tokens,
        block_length=settings.block_length,
        **request["changes"],
    )
    sampler = load_sampler(request["model"], sampling)
    texts = patterns(settings, settings.prompts, seed=0)
    prompts = texts[:, : settings.period + 1].tolist()
    sampler.complete(prompts[:1])  # warm up
    sampler.forwards = 0
    start = time.perf_counter()
    written = sampler.complete(prompts)
    seconds = time.perf_counter() - start
    right = sum(each.text == text for each, text in zip(written, texts.tolist(), strict=True))
    return {
        "seconds": seconds,
        "tokens_per_second": len(prompts) * settings.new_tokens / seconds,
        "forwards": sampler.forwards,
        "exact_match": 100 * right / len(prompts),
    }
