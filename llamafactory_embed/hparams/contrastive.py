"""Options of `stage: contrastive`, and those that it shares with `stage: tdro`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .embedding import EmbeddingOptions
from .option import option
from .run import RunOptions


@dataclass
class RetrievalDataOptions:
    """How rows of retrieval tasks become batches."""

    num_negatives: int = option(1, "Hard negatives a row brings to its batch.", minimum=0)
    dataset_weights: str = option(
        "proportional",
        "How often a task is drawn: proportional to its rows, uniform, temperature, or the path of a weights JSON.",
    )
    dataset_sampling_temperature: float = option(
        2.0, "Tasks are drawn in proportion to rows^(1/temperature) (`dataset_weights: temperature`).", minimum=1.0
    )
    skip_bad_rows: bool = option(False, "Count and leave out rows that cannot be read instead of refusing the data.")


@dataclass
class ComparisonOptions(EmbeddingOptions):
    """How a query is compared with documents, and in what memory."""

    similarity: Literal["cosine", "dot"] = option("cosine", "How a query and a document are compared.")
    loss_temperature: float = option(
        0.05, "Similarities are divided by it; 1/temperature is the `scale` of other tools.", minimum=1e-6
    )
    grad_cache_tokens: int | None = option(
        None, "Tokens of one chunk when the batch is too large for the memory (GradCache); empty: off.", minimum=1
    )

    def __post_init__(self) -> None:
        if self.similarity == "dot" and self.normalize_embeddings:
            raise ValueError(
                "`similarity: dot` trains inner products, but `normalize_embeddings: true` serves embeddings of unit "
                "length, whose inner product is the cosine: set `normalize_embeddings: false` or `similarity: cosine`."
            )


@dataclass
class ContrastiveOptions(RunOptions, ComparisonOptions, RetrievalDataOptions, EmbeddingOptions):
    """Loss and negatives."""

    task_batching: Literal["homogeneous", "mixed"] = option(
        "homogeneous", "Whether one global batch holds rows of one task or of all."
    )
    contrastive_loss: Literal["info_nce", "repllama", "kl_distillation", "margin_distillation", "cosent", "angle"] = (
        option("info_nce", "What is minimized; the distillations and the last two need a `score` column.")
    )
    teacher_temperature: float = option(1.0, "Teacher scores are divided by it (kl_distillation).", minimum=1e-6)
    both_directions: bool = option(False, "Let documents also find their queries (info_nce).")
    cross_device_negatives: bool = option(True, "Use the documents of all processes as negatives (info_nce).")
    false_negative_margin: float | None = option(
        None,
        "Leave out other rows' documents that are more similar to a query than its positive by this much (info_nce).",
        minimum=0.0,
    )
    scale_by_dim: bool = option(False, "Divide the dot product by the size of the embedding (repllama).")
    matryoshka_dims: list[int] | None = option(
        None, "Sizes to which embeddings may be cut; the loss is summed over all of them."
    )
    simcse_dropout: float | None = option(
        None,
        "Attention dropout under which a text is its own positive (SimCSE, for plain texts).",
        minimum=0.0,
        maximum=0.99,
    )
    eval_tasks: list[str] | None = option(
        None, "What the finished model is judged on with mteb: groups, tasks, data sets or paths of local data."
    )
