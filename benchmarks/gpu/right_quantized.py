"""QLoRA: weights in four bits (bitsandbytes), LoRA layers beside them that learn and are merged into whole weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from .closeness import relative_error
from .embedding_step import make_embedder, make_rows, optimized, plain_step, with_lora
from .machine import require
from .record import NotRunHereError
from .shapes import QWEN3, TINY_QWEN3, build_model
from .steps import Bench


STEPS = 8
FOUR_BITS = 0.3  # what rounding weights to four bits may change an embedding by, relatively, in a few layers


def measure(bench: Bench) -> None:
    """Train, save the adapter, merge it into the weights that were never quantized."""
    require("bitsandbytes")
    if bench.device == "cpu":
        raise NotRunHereError("no CUDA device")
    shape = dataclasses.replace(bench.size(QWEN3, TINY_QWEN3), layers=4, vocabulary=400)
    base = bench.folder / "base"
    build_model(shape, bench.device, torch.bfloat16).save_pretrained(base)
    rows = make_rows(16, columns=3, longest=64, fill=1 / 3)
    batches = rows.packed(None)

    quantized = load_in_four_bits(base)
    model = make_embedder(with_lora(quantized), bench.backend)
    step = optimized(model, lambda: plain_step(model, batches, rows.count))
    losses = [float(step()) for _ in range(STEPS)]
    bench.record.check("QLoRA learns", losses[-1] < losses[0], f"{losses[0]:.4f} to {losses[-1]:.4f}")

    model.backbone.save_pretrained(bench.folder / "adapter")
    merged = make_embedder(merge(base, bench.folder / "adapter", bench.device), bench.backend).eval()
    with torch.no_grad():
        trained, whole = model.eval()(batches), merged(batches)
        loss_of_merged = float(plain_loss(merged, batches, rows.count))
    bench.record.error("merged embeddings beside the quantized ones", relative_error(whole, trained), FOUR_BITS)
    bench.record.check(
        "what was learned is in the merged weights", loss_of_merged < losses[0], f"{loss_of_merged:.4f}"
    )


def load_in_four_bits(folder: Path) -> Any:
    """As the host loads it: NF4, computed in bfloat16, and frozen."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModel, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": 0})
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def merge(base: Path, adapter: Path, device: str) -> Any:
    """The adapter in the original weights."""
    from peft import PeftModel
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(base, dtype=torch.bfloat16).to(device)
    return PeftModel.from_pretrained(whole, adapter).merge_and_unload()


def plain_loss(model: Any, batches: Any, rows: int) -> torch.Tensor:
    """Of a batch, without gradients."""
    from .embedding_step import loss_of

    return loss_of(model(batches), rows)
