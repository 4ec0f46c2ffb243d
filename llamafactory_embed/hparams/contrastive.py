"""Options of `stage: contrastive`, and those that it shares with `stage: tdro`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .embedding import EmbeddingOptions, check_mask_pooling
from .loss_terms import CandidateOptions, TermOptions, check_matryoshka_weights, refuse_contradictory_terms
from .multi_vector import MultiVectorOptions, refuse_one_vector_options
from .option import option
from .relevance import ON
from .run import RunOptions, TokenBudgetOptions


@dataclass
class RetrievalDataOptions:
    """How rows of retrieval tasks become batches."""

    num_negatives: int = option(1, "Hard negatives per row in a batch.", minimum=0)
    dataset_weights: str = option(
        "proportional",
        "How often a task is drawn: proportional (to its rows), uniform, temperature, or the path of a weights JSON.",
        group="Data",
    )
    dataset_sampling_temperature: float = option(
        2.0,
        "Draw tasks in proportion to rows^(1/temperature) (`dataset_weights: temperature`).",
        minimum=1.0,
        group="Data",
        when={"dataset_weights": ("temperature",)},
    )
    skip_bad_rows: bool = option(
        False, "Skip and count rows that cannot be read, instead of refusing the data.", group="Data"
    )


@dataclass
class ComparisonOptions(EmbeddingOptions):
    """How a query is compared with documents, and with how much memory."""

    similarity: Literal["cosine", "dot"] = option(
        "cosine", "Similarity of a query and a document.", group="Similarity"
    )
    loss_temperature: float = option(
        0.05, "Divides the similarities; other tools call 1/temperature `scale`.", minimum=1e-6
    )
    grad_cache_tokens: int | None = option(
        None,
        "Tokens of one chunk of a batch that is too large for memory (GradCache); empty: off.",
        minimum=1,
        group="Memory and length of the run",
    )

    def __post_init__(self) -> None:
        check_mask_pooling(self)
        if self.similarity == "dot" and self.normalize_embeddings:
            raise ValueError(
                "`similarity: dot` trains inner products, but `normalize_embeddings: true` serves embeddings of unit "
                "length, whose inner product is the cosine: set `normalize_embeddings: false` or `similarity: cosine`."
            )


@dataclass(frozen=True)
class LossFacts:
    """What a value of `contrastive_loss` needs and does; its function is in `train/embed/losses`."""

    needs_negatives: bool = False
    """Whether every row must have negatives."""

    needs_scores: bool = False
    """Whether every row must have scores: of each of its passages, or of the pair."""

    needs_vectors: bool = False
    """Whether every row must bring vectors of a teacher."""

    in_batch: bool = False
    """Whether other rows' passages are candidates, so that a row in a larger batch needs no negatives."""

    similarity: Literal["cosine", "dot"] | None = None
    """How texts are compared, whatever the option `similarity` says; None: as it says."""

    takes_sets: bool = False
    """Whether texts may have several vectors (`multi_vector`)."""


LOSSES: dict[str, LossFacts] = {
    "info_nce": LossFacts(in_batch=True, takes_sets=True),
    "repllama": LossFacts(needs_negatives=True, similarity="dot"),
    "kl_distillation": LossFacts(needs_negatives=True, needs_scores=True, takes_sets=True),
    "margin_distillation": LossFacts(needs_negatives=True, needs_scores=True, takes_sets=True),
    "cosent": LossFacts(needs_scores=True, similarity="cosine"),
    "angle": LossFacts(needs_scores=True, similarity="cosine"),
    "mse": LossFacts(needs_scores=True, similarity="cosine"),
    "pairs": LossFacts(needs_scores=True, similarity="cosine"),
    "online_pairs": LossFacts(needs_scores=True, similarity="cosine"),
    "triplet": LossFacts(needs_negatives=True, similarity="cosine"),
    "vector_distillation": LossFacts(needs_vectors=True),
}


@dataclass
class ContrastiveOptions(
    RunOptions,
    TokenBudgetOptions,
    ComparisonOptions,
    RetrievalDataOptions,
    CandidateOptions,
    TermOptions,
    MultiVectorOptions,
    EmbeddingOptions,
):
    """Loss and negatives."""

    task_batching: Literal["homogeneous", "mixed"] = option(
        "homogeneous", "Whether a global batch holds rows of one task or of all tasks.", group="Data"
    )
    contrastive_loss: Literal[
        "info_nce",
        "repllama",
        "kl_distillation",
        "margin_distillation",
        "cosent",
        "angle",
        "mse",
        "pairs",
        "online_pairs",
        "triplet",
        "vector_distillation",
    ] = option(
        "info_nce",
        "Loss; cosent, angle, mse, the pairs and the distillations of scores need a `score` column, "
        "vector_distillation a teacher's vectors.",
    )
    objectives: dict[str, Any] | None = option(
        None,
        "Task → what it is trained for instead: `loss`, `temperature`, `num_negatives`, `weight` and others "
        "(docs/contrastive.md).",
        group="Data",
    )
    kl_weight: float = option(
        0.0,
        "Weight of the teacher's KL divergence (kl_distillation) that is added to info_nce for rows with a `score` "
        "column; 0: off.",
        label="Weight of the teacher's KL",
        minimum=0.0,
        group="Teacher",
        when={"contrastive_loss": ("info_nce",)},
    )
    teacher_temperature: float = option(
        1.0,
        "Divides the teacher's scores (kl_distillation, `kl_weight`).",
        minimum=1e-6,
        group="Teacher",
        when=[{"contrastive_loss": ("kl_distillation",)}, {"contrastive_loss": ("info_nce",), "kl_weight": ON}],
    )
    both_directions: bool = option(
        False,
        "Also rank queries for each document (info_nce).",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    cross_device_negatives: bool = option(
        True,
        "Use the documents of all processes as negatives (info_nce).",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    false_negative_margin: float | None = option(
        None,
        "Ignore in-batch negatives that are more similar to a query than its positive by this much (info_nce).",
        minimum=0.0,
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    scale_by_dim: bool = option(
        False,
        "Divide the dot product by the embedding size (repllama).",
        group="Similarity",
        when={"contrastive_loss": ("repllama",)},
    )
    matryoshka_dims: list[int] | None = option(
        None, "Sizes to which embeddings can be cut (Matryoshka); the loss is summed over all of them."
    )
    matryoshka_weights: list[float] | None = option(
        None,
        "Weights of the losses at `matryoshka_dims`, in their order; empty: 1 each.",
        group="Similarity",
        when={"matryoshka_dims": ON},
    )
    quantization_aware: Literal["none", "int8", "binary"] = option(
        "none",
        "Compute the loss from embeddings as they come back from int8 or binary, with straight-through gradients; the "
        "checkpoint keeps the ranges that int8 needs.",
        label="Quantization-aware training",
        group="Similarity",
    )
    simcse_dropout: float | None = option(
        None,
        "Attention dropout that makes a second view of a text, its positive (SimCSE, for plain texts).",
        minimum=0.0,
        maximum=0.99,
        group="Data",
    )
    eval_tasks: list[str] | None = option(
        None,
        "Evaluate the finished model with mteb on these: groups, tasks, data sets or paths of local data.",
        group="Evaluation",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_one_vector_options(self, tuple(name for name, facts in LOSSES.items() if facts.takes_sets))
        refuse_contradictory_terms(self)
        check_matryoshka_weights(self.matryoshka_dims, self.matryoshka_weights)
        self._check_quantization()
        if self.kl_weight and self.contrastive_loss != "info_nce":
            raise ValueError(
                f"`kl_weight` adds a teacher's KL divergence to `contrastive_loss: info_nce`, not to "
                f"{self.contrastive_loss}: change the loss, or leave `kl_weight` out."
            )
        if self.kl_weight and self.num_negatives < 1:
            raise ValueError(
                "`kl_weight` compares a teacher's scores of a query's positive and of its own negatives: set "
                "`num_negatives` to at least 1."
            )
        if LOSSES[self.contrastive_loss].needs_negatives and self.num_negatives < 1:
            raise ValueError(
                f"`contrastive_loss: {self.contrastive_loss}` compares a query's positive with its own negatives: set "
                "`num_negatives` to at least 1."
            )

    def _check_quantization(self) -> None:
        """Refuse losses of lengths where the stored embeddings have lost them."""
        compares_lengths = (LOSSES[self.contrastive_loss].similarity or self.similarity) == "dot"
        if self.quantization_aware == "none" or not compares_lengths:
            return
        if self.quantization_aware == "binary":
            raise ValueError(
                "`quantization_aware: binary` keeps signs, which know no length, and this loss compares inner "
                "products: use int8, or a loss and a `similarity` of cosines."
            )
        if self.normalize_embeddings:
            raise ValueError(
                f"`quantization_aware: int8` trains embeddings as they are stored, here of unit length, and "
                f"`contrastive_loss: {self.contrastive_loss}` compares inner products: set "
                "`normalize_embeddings: false`."
            )
