"""Options of `stage: ddm` and `stage: ddm-sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .masked_tokens import MaskedTokenOptions
from .option import option
from .run import RunOptions
from .sampling import SamplingOptions


@dataclass
class DiffusionOptions(RunOptions, SamplingOptions, MaskedTokenOptions):
    """Corruption, attention and loss of a diffusion language model."""

    checkpoint_dir: str | None = option(
        None,
        "Folder or hub name of an adapted model whose weights replace those of `model_name_or_path`, in the layout of "
        "transformers or of DiffuLLaMA.",
    )
    anneal_steps: int = option(
        1, "Steps in which attention opens from causal to bidirectional; 1: bidirectional at once.", minimum=1
    )
    block_size: int | None = option(
        None,
        "Tokens of a block that is denoised after those before it (block diffusion); 0: off; empty: as the checkpoint "
        "was trained, else off.",
        minimum=0,
    )
    noise_schedule: Literal["linear", "cosine", "loglinear"] = option(
        "linear", "The share of hidden tokens as a function of the time."
    )
    time_epsilon: float = option(1e-3, "The earliest time that is drawn.", minimum=1e-6, maximum=0.5)
    antithetic_time: bool = option(True, "Spread the times of a step evenly instead of drawing each by itself.")
    loss_weight: Literal["elbo", "uniform", "scheduler"] = option(
        "elbo", "What a hidden token counts: by the bound, all alike, or one over its chance to be hidden."
    )
    loss_norm: Literal["token", "sequence", "masked"] = option(
        "token",
        "What the loss is divided by: all tokens that could be hidden, those of each text and then the texts, or the "
        "hidden ones (DiffuLLaMA).",
    )
    elbo_samples: int = option(8, "Corruptions of each text from which an evaluation estimates the bound.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size and self.anneal_steps > 1:
            raise ValueError(
                f"`anneal_steps: {self.anneal_steps}` opens the attention of whole texts, which `block_size: "
                f"{self.block_size}` keeps closed between blocks: unset one of them, with `block_size: 0` if the "
                "checkpoint brings it."
            )


@dataclass
class DiffusionTuningOptions(DiffusionOptions):
    """What `ddm-sft` adds: instructions and answers."""

    ddm_format: Literal["chat", "diffuseq"] = option(
        "chat", "How a row is written: by the host's `template`, or as `bos source sep target eos` (DiffuLLaMA)."
    )
    eos_padding: Literal["never", "batch", "cutoff_len"] | None = option(
        None,
        "Up to where an answer is followed by EOS that is learned like the answer: its batch's longest row (LLaDA) "
        "or `cutoff_len`. Empty: batch; `diffuseq` always fills up to `cutoff_len`, with the padding token.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ddm_format == "diffuseq" and self.eos_padding not in (None, "cutoff_len"):
            raise ValueError(
                f"`ddm_format: diffuseq` fills every row up to `cutoff_len`: unset `eos_padding: {self.eos_padding}`."
            )
