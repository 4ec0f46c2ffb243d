"""sentence-transformers' training arguments, as a JSON file. Model, loss and data stand in its users' programs."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, nothing
from .training_arguments import TRAINING_ARGUMENTS


def _prompts(value: Any, settings: Settings) -> Values:
    """One prompt for all texts, or one for each column."""
    if isinstance(value, str):
        return {"query_template": f"{value}{{text}}", "document_template": f"{value}{{text}}"}
    if not isinstance(value, dict):
        return {}
    kinds = {
        "query_template": ("anchor", "query", "question"),
        "document_template": ("positive", "document", "answer"),
    }
    found = {option: next((value[name] for name in names if isinstance(value.get(name), str)), None)
             for option, names in kinds.items()}  # fmt: skip
    return {option: f"{prefix}{{text}}" for option, prefix in found.items() if prefix is not None}


def _implied(settings: Settings) -> Values:
    """What the file leaves to the program: the most usual of it."""
    values: Values = {"model_name_or_path": "your/model", "stage": "contrastive", "do_train": True}
    values |= {"finetuning_type": "full", "attention": "causal", "pooling": "mean", "contrastive_loss": "info_nce"}
    values |= {"loss_temperature": 0.05, "query_template": "{text}", "cross_device_negatives": False}
    return values | {"task_batching": "homogeneous", "dataset_dir": "data", "dataset": "your_data"}


SENTENCE_TRANSFORMERS = Tool(
    key="sentence-transformers",
    title="sentence-transformers",
    flags=(
        *TRAINING_ARGUMENTS,
        computed("prompts", ["query_template", "document_template"], _prompts, "the prompt and `{text}`"),
        mapped("multi_dataset_batch_sampler", "dataset_weights",
               {"proportional": "proportional", "round_robin": "uniform",
                "MultiDatasetBatchSamplers.PROPORTIONAL": "proportional",
                "MultiDatasetBatchSamplers.ROUND_ROBIN": "uniform"},
               "`proportional` → `proportional`, `round_robin` → `uniform`"),
        *nothing("equal texts in a batch are never one another's negatives here", "batch_sampler"),
        *nothing("a batch holds rows of one task, each with its own template", "router_mapping"),
        *nothing("one learning rate for all weights", "learning_rate_mapping"),
    ),
    implied=_implied,
    remarks=(
        "Model, loss, pooling and data stand in a program, not in this file: fill in what is marked.",
        "`MultipleNegativesRankingLoss(scale=20)` is `info_nce` with `loss_temperature: 0.05`; its Cached form is",
        "`grad_cache_tokens`. `CoSENTLoss` is `cosent`, `AnglELoss` `angle`, `MarginMSELoss` `margin_distillation`,",
        "`MatryoshkaLoss` `matryoshka_dims`.",
    ),
)  # fmt: skip
