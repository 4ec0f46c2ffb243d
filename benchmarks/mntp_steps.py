"""The steps that `mntp_vs_llm2vec` compares. `theirs` and `their_states` run where there are only torch, transformers
4.44 and llm2vec: nothing of this package is imported before it is needed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .memory import PeakMemory


LEARNING_RATE = 1e-4
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def ours(request: dict[str, Any]) -> dict[str, Any]:
    """The module that `stage: mntp` trains."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from llamafactory_embed.model.packed import TOKENS_PER_TRAINING_BATCH_ON_CPU
    from llamafactory_embed.model.token_predictor import CorruptedText, TokenPredictor, pack_corrupted_texts

    torch.manual_seed(0)
    backbone = get_peft_model(AutoModelForCausalLM.from_pretrained(request["model"]), LoraConfig(**LORA))
    model = TokenPredictor(backbone, shift=True, backend="sdpa").train()

    def loss(batch: dict[str, Any]) -> Any:
        rows = zip(*(torch.tensor(batch[key]) for key in ("input_ids", "labels")), strict=True)
        texts = [CorruptedText(token_ids, labels) for token_ids, labels in rows]
        scores = model(pack_corrupted_texts(texts, TOKENS_PER_TRAINING_BATCH_ON_CPU))
        return scores.loss / len(scores.losses)

    return run_steps(request, model, loss)


def theirs(request: dict[str, Any]) -> dict[str, Any]:
    """The package's model with its own loss, LoRA below the head as its training script has it. (That script leaves a
    head of its own trainable and does not save it; here it is frozen in both.)"""
    import torch
    from llm2vec.models import LlamaBiForMNTP
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = LlamaBiForMNTP.from_pretrained(request["model"], attn_implementation="sdpa")
    model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), LoraConfig(**LORA)))
    model.lm_head.requires_grad_(False)
    model.train()

    def loss(batch: dict[str, Any]) -> Any:
        inputs, labels = (torch.tensor(batch[key]) for key in ("input_ids", "labels"))
        return model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels).loss

    return run_steps(request, model, loss)


def their_states(request: dict[str, Any]) -> dict[str, Any]:
    """The hidden states of one text, with an adapter in the package's layout loaded by the package."""
    import torch
    from llm2vec import LLM2Vec

    model = LLM2Vec.from_pretrained(request["model"], peft_model_name_or_path=request["adapter"]).eval()
    with torch.no_grad():
        tokens = torch.tensor([request["tokens"]])
        states = model.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
    return {"states": states.tolist(), "pooling": model.pooling_mode, "max_length": model.max_length}


def run_steps(request: dict[str, Any], model: Any, loss_of: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Forward, backward and AdamW. The first step warms up: before it, weights that are mapped from a file are not yet
    in memory."""
    import torch

    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE)
    memory = PeakMemory()
    losses, times = [], []
    for number, batch in enumerate(read_batches(request)):
        if number == 1:
            memory.start()
        start = time.perf_counter()
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
        del loss
    seconds = statistics.median(times[1:])
    return {
        "seconds": seconds,
        "tokens_per_second": request["rows"] * request["length"] / seconds,
        "peak_mib": memory.above_baseline(),
        "first_loss": losses[0],
        "losses": losses,
    }


def read_batches(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from json.loads(Path(request["batches"]).read_text("utf-8"))
