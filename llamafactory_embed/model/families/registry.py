"""What is known of a model family when it is trained or sampled as a masked language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Facts that follow from `model_type` in config.json; a recipe's options override them."""

    name: str
    """How people call it."""

    model_types: tuple[str, ...]

    is_diffusion: bool = False
    """Whether its checkpoints are diffusion language models already, not autoregressive ones that become one."""

    shift: bool = True
    """Whether a token is predicted at the position before it, as autoregressive models learned it; LLaDA, which never
    was one, predicts it at its own."""

    mask_token: str | None = None
    """The tokenizer's own mask token, None where one has to be added."""

    eos_padding: bool = False
    """Whether answers are filled up with EOS tokens which are learned like the answer, so that a sampler with a fixed
    number of positions can leave some empty. Dream and LLaDA were tuned so, and pad with EOS altogether."""

    template: str | None = None
    """LLaMA-Factory's chat template of its instruct models; None where `model_type` does not tell."""

    sampler: str = "topk_low_score"
    """The sampling algorithm that its authors use; for autoregressive models, DiffuLLaMA's."""

    block_length: int | None = None
    """The blocks in which they let it write; None: the whole text at once."""

    liger_as: str | None = None
    """The `model_type` whose Liger kernels serve, where the family is built from that one's modules."""


DREAM = Family(
    name="Dream",
    model_types=("Dream",),
    is_diffusion=True,
    mask_token="<|mask|>",
    eos_padding=True,
    template="dream",
    sampler="entropy",
    liger_as="qwen2",
)
LLADA = Family(
    name="LLaDA",
    model_types=("llada",),
    is_diffusion=True,
    shift=False,
    mask_token="<|mdm_mask|>",
    eos_padding=True,
    template="llada",
    sampler="low_confidence",
    block_length=32,
    liger_as="llama",
)
FAMILIES = (
    DREAM,
    LLADA,
    Family("GPT-2", ("gpt2",)),
    Family("Llama", ("llama",)),
    Family("Mistral", ("mistral",)),
    Family("Qwen2", ("qwen2",), template="qwen"),  # Qwen2.5 as well
    Family("Qwen3", ("qwen3",), template="qwen3"),
    Family("Gemma", ("gemma",), template="gemma"),
    Family("Gemma 2", ("gemma2",), template="gemma2"),
    Family("Gemma 3", ("gemma3_text",), template="gemma3"),
    Family("Phi", ("phi", "phi3")),
)
_FAMILY_OF_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def find_family(model: Any) -> Family | None:
    """The family of a configuration or of a `model_type`, None if it is not in the registry."""
    return _FAMILY_OF_TYPE.get(model if isinstance(model, str) else model.model_type)


def family_of(model: Any) -> Family:
    """The family of a configuration or of a `model_type`; a sentence for one that nobody has entered."""
    family = find_family(model)
    if family is None:
        model_type = model if isinstance(model, str) else model.model_type
        known = ", ".join(each.name for each in FAMILIES)
        raise ValueError(
            f"Nothing is known of the mask token and the shift of `{model_type}` models, only of {known}: set "
            "`mask_token` and `shift`."
        )
    return family
