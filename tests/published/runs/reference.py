"""The second implementation: plain torch, no import from the package.

A step is written out as the papers and torch have it: padded batches, one forward for the texts of a micro-batch, the
loss from its formula, the gradients of the step's micro-batches added up, clipped by their norm, and AdamW. All that
it takes from a run is where it starts (LoRA's first weights are drawn), and the order of rows and masks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel


LORA_SCALE = 2.0  # alpha / rank of all recipes
PADDING = 2  # any token: nothing attends to it


# ---------------------------------------------------------------------------------------------------------------------
# Schedules: the share of the learning rate in step 0, 1, …
# ---------------------------------------------------------------------------------------------------------------------

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    return 1.0


def linear(warmup: int, total: int) -> Schedule:
    """Up from 0 in `warmup` steps, then down to 0 at `total`."""
    return lambda step: step / warmup if step < warmup else (total - step) / (total - warmup)


def cosine(warmup: int, total: int, least: float = 0.0) -> Schedule:
    """Up from 0 in `warmup` steps, then half a cosine down to `least`."""

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        falling = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        return least + (1 - least) * falling

    return share


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


def load_model(folder: Path) -> PreTrainedModel:
    """A model in float32 without dropout, whose weights learn only where a run's did."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.requires_grad_(False).eval()


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add a saved adapter to the weights: W + alpha / rank * B A."""
    weights = load_file(folder / "adapter_model.safetensors")
    for name, down in weights.items():
        if name.endswith("lora_A.weight"):
            path = re.sub(r"^base_model\.model\.", "", name).removesuffix(".lora_A.weight")
            up = weights[name.replace("lora_A", "lora_B")]
            model.get_submodule(path).weight.data += LORA_SCALE * up @ down


def prepare_to_learn(model: PreTrainedModel, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let what learned in a run learn here too, from the same start: LoRA's factors beside their layers, or weights of
    the model; by the names they have in the run. Those of a pooler are returned only."""
    learned = {name: each.clone().requires_grad_() for name, each in start.items()}
    for name, each in learned.items():
        path = re.sub(r"^backbone\.(base_model\.model\.)?", "", name)
        if not name.startswith("backbone."):
            continue
        if ".lora_A." in path:
            add_lora(model.get_submodule(path.split(".lora_A.")[0]), each, learned[name.replace("lora_A", "lora_B")])
        elif ".lora_B." not in path:
            module, _, parameter = path.replace(".modules_to_save.default", "").rpartition(".")
            set_weight(model, module, parameter, each)
    return learned


def add_lora(layer: nn.Module, down: Tensor, up: Tensor) -> None:
    """x W' + alpha / rank * x A' B'."""
    layer.register_forward_hook(lambda _, inputs, output: output + LORA_SCALE * inputs[0] @ down.T @ up.T)


def set_weight(model: PreTrainedModel, path: str, name: str, value: Tensor) -> None:
    """Compute with this tensor; an embedding takes a tied head along."""
    module = model.get_submodule(path)
    old = getattr(module, name)
    users = [each for each in model.modules() if each._parameters.get(name) is old]
    for user in users:
        del user._parameters[name]
        setattr(user, name, value)


def hidden_states(model: PreTrainedModel, texts: Sequence[Sequence[int]], allowed: Tensor | None = None) -> Tensor:
    """Last hidden states [B, L, d] of texts padded on the right. `allowed` [L, L] says who may attend to whom in a
    text, beside padding, to which nobody does; without it, everyone."""
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text, *[PADDING] * (longest - len(text))] for text in texts])
    is_text = torch.arange(longest) < torch.tensor([len(text) for text in texts]).unsqueeze(1)  # [B, L]
    may_attend = is_text[:, None, None, :].expand(-1, 1, longest, longest)
    if allowed is not None:
        may_attend = may_attend & allowed[:longest, :longest]
    scores = torch.zeros(may_attend.shape).masked_fill(~may_attend, torch.finfo(torch.float32).min)
    return model.base_model(input_ids=tokens, attention_mask=scores, use_cache=False).last_hidden_state


def causal(longest: int) -> Tensor:
    return torch.ones(longest, longest, dtype=torch.bool).tril()


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What a recipe says about the optimizer; the defaults are the Trainer's."""

    learning_rate: float
    schedule: Schedule
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_norm: float = 1.0


@dataclass
class Result:
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)


def decays(name: str) -> bool:
    """The rule of transformers' Trainer, on which the originals and the package build: weights of norms and all biases
    are left alone."""
    return "norm" not in name and not name.endswith("bias") and re.search(r"\.ln_(\d|f)\.", name) is None


def train(learned: dict[str, Tensor], step_losses: Iterable[Iterable[Tensor]], training: Training) -> Result:
    """One step after the other. A step's parts are losses whose sum is the step's loss."""
    groups = [
        {"params": [each for name, each in learned.items() if decays(name)], "weight_decay": training.weight_decay},
        {"params": [each for name, each in learned.items() if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=1e-8)
    result = Result()
    for step, parts in enumerate(step_losses):
        rate = training.learning_rate * training.schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            part.backward()
            total += part.item()
        gradients = [each.grad for each in learned.values() if each.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient *= (training.max_norm / (norm + 1e-6)).clamp(max=1)
        optimizer.step()
        result.losses.append(total)
        result.learning_rates.append(rate)
        result.gradient_norms.append(float(norm))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Texts and losses
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompted:
    """A text with what stands before and after it."""

    before: str
    text: str
    after: str = ""


def tokenize(tokenizer: Any, prompted: Prompted, *, eos: bool = False) -> tuple[list[int], list[bool]]:
    """Tokens with BOS in front, and which of them hold characters of the text or of what stands after it."""
    string = prompted.before + prompted.text + prompted.after
    encoded = tokenizer(string, add_special_tokens=False, return_offsets_mapping=True)
    tokens = [tokenizer.bos_token_id, *encoded["input_ids"]]
    belongs = [False, *(end > len(prompted.before) for _, end in encoded["offset_mapping"])]
    return (tokens + [tokenizer.eos_token_id], belongs + [True]) if eos else (tokens, belongs)


def mean_pool(states: Tensor, counts: Sequence[Sequence[bool]]) -> Tensor:
    """States [B, L, d] → the mean of those that count, [B, d]."""
    longest = states.shape[1]
    weights = torch.tensor([[*row, *[False] * (longest - len(row))] for row in counts]).float().unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, scale: float) -> Tensor:
    """-log softmax(scale * cosine)[own positive] among all positives and all negatives, the mean over queries."""
    candidates = F.normalize(torch.cat([positives, negatives]), dim=-1)
    scores = scale * F.normalize(queries, dim=-1) @ candidates.T
    return F.cross_entropy(scores, torch.arange(len(queries)))


def predict_masked(model: PreTrainedModel, states: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each token from the state before it; labels [B, L], -100 where none is asked for → [B, L - 1],
    0 there."""
    logits = model.get_output_embeddings()(states[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
