"""What the checkpoint of an embedder remembers so that it is served as it was trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..hparams.embedding import EmbeddingOptions
from .dense import DenseLayer, plan_dense
from .pooling import Pooling, needs_eos
from .records import CheckpointRecord


CONFIG_NAME = "embedding_config.json"


@dataclass(frozen=True)
class EmbeddingConfig(CheckpointRecord):
    """Attention, pooling, prompts and lengths of an embedder."""

    file_name: ClassVar[str] = CONFIG_NAME
    described_as: ClassVar[str] = "a checkpoint of an embedder"

    attention: Literal["bidirectional", "causal"]
    sliding_window: Literal["keep", "ignore"]
    pooling: Pooling
    latents: int
    latent_heads: int
    latent_head_size: int | None
    skip_instruction: bool
    query_template: str
    document_template: str
    query_max_length: int
    document_max_length: int
    normalize: bool
    max_tokens_per_batch: int | None
    similarity: Literal["cosine", "dot"] = "cosine"
    matryoshka_dims: list[int] | None = None
    instructions: dict[str, str] = field(default_factory=dict)
    """The instruction of each task that was trained, by the task's name."""
    symmetric_tasks: list[str] = field(default_factory=list)
    """Tasks whose documents are written like queries."""
    base_model: str | None = None
    """The model below the adapter, for a checkpoint that holds an adapter only."""
    merged_adapters: list[str] = field(default_factory=list)
    """Adapters merged into the base model before this one, in that order."""
    dense: list[DenseLayer] = field(default_factory=list)
    """The layers behind the pooling."""
    appends_eos: bool | None = None
    """Whether tokenization appends EOS where the tokenizer does not; None: where the pooling reads it."""
    mask_tokens: int = 0
    """How many mask tokens tokenization appends, for a pooling that reads these."""
    mask_token: str | None = None
    """The name in the vocabulary of the token that it appends."""
    default_task: str | None = None
    """The task of queries that name none."""
    multi_vector: bool = False
    """Whether each token that the pooling would average is a vector of its own, and MaxSim compares them."""

    def __post_init__(self) -> None:
        """A file holds each layer as an object of JSON."""
        layers = [layer if isinstance(layer, DenseLayer) else DenseLayer(**layer) for layer in self.dense]
        object.__setattr__(self, "dense", layers)

    @classmethod
    def from_options(cls, options: EmbeddingOptions, cutoff_len: int, **more: Any) -> EmbeddingConfig:
        """The part of the configuration that a recipe's options decide."""
        return cls(
            attention=options.attention,
            sliding_window=options.sliding_window,
            pooling=options.pooling,
            latents=options.latents,
            latent_heads=options.latent_heads,
            latent_head_size=options.latent_head_size,
            skip_instruction=options.skip_instruction,
            query_template=options.query_template,
            document_template=options.document_template,
            query_max_length=options.query_max_length or cutoff_len,
            document_max_length=options.document_max_length or cutoff_len,
            normalize=options.normalize_embeddings,
            max_tokens_per_batch=options.max_tokens_per_batch,
            mask_tokens=options.mask_tokens if options.pooling == "mask" else 0,
            dense=plan_dense(options.dense_sizes or [], options.dense_bias, options.dense_activations),
            **more,
        )

    @property
    def causal(self) -> bool:
        return self.attention == "causal"

    @property
    def append_eos(self) -> bool:
        """Whether tokenization must append an EOS token, which pooling reads."""
        return needs_eos(self.pooling, self.causal) if self.appends_eos is None else self.appends_eos

    @property
    def dense_sizes(self) -> list[int]:
        """The sizes of the layers behind the pooling."""
        return [layer.size for layer in self.dense]

    @property
    def pooling_options(self) -> str:
        """The options of a recipe that ask for weights above the language model, for sentences about these."""
        if not self.dense:
            return f"pooling: {self.pooling}"
        return f"dense_sizes: {self.dense_sizes}"

    def require_one_vector(self, what: str) -> None:
        """Refuse a model of several vectors a text where one is needed; `what` begins the sentence."""
        if self.multi_vector:
            raise ValueError(
                f"{what} needs one vector a text, and this model has one for every token (`multi_vector: true`): use "
                "`Encoder.encode` and `Encoder.similarity`."
            )

    def embedding_size(self, hidden_size: int) -> int:
        """The size of an embedding of a model whose states have this size."""
        return self.dense[-1].size if self.dense else hidden_size

    @property
    def compares_unit_length(self) -> bool:
        """Whether the model's similarity is the inner product of embeddings brought to unit length, rather than of
        embeddings as they are."""
        return self.normalize or self.similarity == "cosine"
