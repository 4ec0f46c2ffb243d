"""How much memory a training step takes on one device: a closed form of the model's shape and the recipe.

Counted are the bytes that live longest: weights, optimizer states, gradients, and what autograd keeps of the packed
forwards for the backward pass. `benchmarks/step_memory.py` compares the estimate with the peak of torch's allocations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


GIB = 2**30
# Logits that exist at a time (`model/token_loss.py`), and how many tensors of that size: logits, probabilities and
# gradient.
LOGITS_AT_A_TIME = 2**25
COPIES_OF_LOGITS = 3
# A quantized weight of 4 bits, with its block's scale (double quantization).
BYTES_OF_4_BITS = 0.52
# What a process on a GPU takes for itself: the context, the libraries, and what the allocator cannot hand out again.
GPU_OVERHEAD = 1.5 * GIB
ALLOCATOR_LOSS = 1.08


@dataclass(frozen=True)
class ModelShape:
    """What a configuration says about a decoder's size."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def query_size(self) -> int:
        return self.heads * self.head_size

    @property
    def key_size(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections."""
        attention = 2 * self.hidden * self.query_size + 2 * self.hidden * self.key_size
        return attention + 3 * self.hidden * self.intermediate

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights, norms included."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_weights + norms + self.embedding_weights * (1 if self.tied else 2)

    def adapter_weights(self, rank: int) -> int:
        """Those of LoRA on all projections."""
        sizes = 2 * (self.hidden + self.query_size) + 2 * (self.hidden + self.key_size)
        return self.layers * rank * (sizes + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True)
class StepSettings:
    """What a recipe says about the memory of a step."""

    method: Literal["full", "lora", "qlora"]
    tokens: int
    """Tokens of one micro-batch: all of its texts."""

    tokens_of_forward: int
    """Most tokens of one forward (`max_tokens_per_batch`, `grad_cache_tokens`)."""

    rank: int = 16
    half_precision: bool = True
    """bf16 on a GPU, float32 on a CPU."""

    checkpointing: bool = True
    grad_cache: bool = False
    predicts_tokens: bool = False
    """Whether the stage predicts hidden tokens with the language-model head."""

    hidden_share: float = 0.5
    """Share of the tokens that are hidden and predicted."""

    uses_head: bool = True
    """Whether the language-model head is loaded; embedders leave it out."""

    zero_stage: int = 0
    gpus: int = 1


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device, by what they are for."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    step_peak: float
    """Most of gradients, activations and logits at one time."""

    @property
    def kept(self) -> float:
        """What is there between the steps."""
        return self.weights + self.optimizer

    @property
    def total(self) -> float:
        return self.kept + self.step_peak


def estimate_step(shape: ModelShape, settings: StepSettings) -> StepMemory:
    """The memory of one step, from the second on."""
    trained = shape.adapter_weights(settings.rank) if settings.method != "full" else loaded_weights(shape, settings)
    shards = settings.gpus
    weights = bytes_of_weights(shape, settings) / (shards if settings.zero_stage == 3 else 1)
    optimizer = 8.0 * trained / (shards if settings.zero_stage else 1)
    is_master_copy = settings.zero_stage > 0 and settings.method == "full" and settings.half_precision
    optimizer += 4.0 * trained / shards if is_master_copy else 0.0
    gradients = (2.0 if is_master_copy else 4.0) * trained / (shards if settings.zero_stage >= 2 else 1)
    activations = activation_bytes(shape, settings)
    logits = logits_bytes(shape, settings)
    peak = step_peak(shape, settings, gradients, activations, logits)
    return StepMemory(weights, optimizer, gradients, activations, logits, peak)


def loaded_weights(shape: ModelShape, settings: StepSettings) -> int:
    """Weights that the stage loads: an embedder has no head of its own."""
    return shape.weights - (0 if settings.uses_head or shape.tied else shape.embedding_weights)


def bytes_of_weights(shape: ModelShape, settings: StepSettings) -> float:
    """Weights in float32 where all of them learn or nothing is in half precision; the host keeps a copy in half
    precision for the forward. Under ZeRO the float32 copy is the optimizer's."""
    count = loaded_weights(shape, settings)
    if settings.method == "full":
        if not settings.half_precision:
            return 4.0 * count
        return 2.0 * count if settings.zero_stage else 4.0 * count + 2.0 * count
    adapter = 4.0 * shape.adapter_weights(settings.rank)
    if settings.method == "qlora":
        projections = shape.layers * shape.layer_weights
        return BYTES_OF_4_BITS * projections + 2.0 * (count - projections) + adapter
    return (2.0 if settings.half_precision else 4.0) * count + adapter


def layer_bytes_per_token(shape: ModelShape, settings: StepSettings) -> float:
    """What autograd keeps of one layer for each token: inputs of the norms and projections, queries, keys and values
    after the rotation, the attention's output before and after its texts are joined, and four vectors of the MLP."""
    norms = 6 if settings.method == "full" else 4  # a norm that learns keeps its normalized input, too
    attention = 3 * shape.query_size + 2 * shape.key_size
    values = norms * shape.hidden + attention + 4 * shape.intermediate
    size = 2.0 if settings.half_precision else 4.0
    upcast = 4.0 * shape.hidden if settings.half_precision else 0.0  # norms compute in float32
    low_rank = 7 * settings.rank if settings.method != "full" else 0
    return size * (values + low_rank) + upcast


def activation_bytes(shape: ModelShape, settings: StepSettings) -> float:
    """What is kept for the backward pass; with GradCache, of one chunk."""
    tokens = min(settings.tokens, settings.tokens_of_forward) if settings.grad_cache else settings.tokens
    at_once = min(settings.tokens, settings.tokens_of_forward)
    layer = layer_bytes_per_token(shape, settings)
    size = 2.0 if settings.half_precision else 4.0
    ends = 3 * size * shape.hidden * tokens  # embedding, last norm
    if settings.checkpointing:
        return ends + size * shape.hidden * shape.layers * tokens + layer * at_once
    return ends + shape.layers * layer * tokens


def logits_bytes(shape: ModelShape, settings: StepSettings) -> float:
    """A chunk of logits, and the head's gradient of that chunk where the head learns."""
    if not settings.predicts_tokens:
        return 0.0
    predicted = settings.hidden_share * min(settings.tokens, settings.tokens_of_forward)
    rows = min(predicted, max(1, LOGITS_AT_A_TIME // shape.vocabulary))
    head = 4.0 * shape.embedding_weights if settings.method == "full" else 0.0
    return COPIES_OF_LOGITS * 4.0 * rows * shape.vocabulary + head


def step_peak(shape: ModelShape, settings: StepSettings, gradients: float, activations: float, logits: float) -> float:
    """Activations shrink while gradients grow. A batch of several forwards has all gradients after the first of them,
    and still holds the activations of the others."""
    forwards = -(-settings.tokens // settings.tokens_of_forward)
    transient = backward_transient(shape, settings)
    if settings.grad_cache:
        return gradients + activations + transient if forwards > 1 else max(activations, gradients) + transient
    later = activations * (forwards - 1) / forwards
    return max(activations + logits, later + gradients) + transient


def backward_transient(shape: ModelShape, settings: StepSettings) -> float:
    """What exists for a moment: gradients of one layer's widest values, and the embedding's gradient when it is added
    to another one."""
    at_once = min(settings.tokens, settings.tokens_of_forward)
    size = 2.0 if settings.half_precision else 4.0
    widest = 3 * size * shape.intermediate * at_once
    is_added = settings.method == "full" and settings.tokens > settings.tokens_of_forward
    return widest + (4.0 * shape.embedding_weights if is_added else 0.0)


def fits_into(shape: ModelShape, settings: StepSettings, memory: float) -> bool:
    """Whether a step fits into a GPU of that many bytes."""
    return estimate_step(shape, settings).total * ALLOCATOR_LOSS + GPU_OVERHEAD <= memory
