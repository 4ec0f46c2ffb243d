"""Options of `stage: ddm` and `stage: ddm-sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .masked_tokens import MaskedTokenOptions
from .option import option
from .run import RunOptions, TokenBudgetOptions
from .sampling import SamplingOptions


@dataclass
class DiffusionOptions(RunOptions, TokenBudgetOptions, SamplingOptions, MaskedTokenOptions):
    """Corruption, attention and loss of a diffusion language model."""

    checkpoint_dir: str | None = option(
        None,
        "Folder or hub name of an adapted model, in the layout of transformers or DiffuLLaMA; its weights replace "
        "those of `model_name_or_path`.",
        group="Model",
    )
    anneal_steps: int = option(
        1,
        "Steps over which attention changes from causal to bidirectional; 1: bidirectional from the start.",
        minimum=1,
        when={"block_size": (None, 0)},
    )
    block_size: int | None = option(
        None,
        "Tokens of a block; blocks are denoised one after another (block diffusion). 0: off; empty: as the checkpoint "
        "was trained, otherwise off.",
        minimum=0,
    )
    noise_schedule: Literal["linear", "cosine", "loglinear"] = option(
        "linear", "Share of hidden tokens as a function of time."
    )
    time_epsilon: float = option(1e-3, "Earliest time to draw.", minimum=1e-6, maximum=0.5, group="Noise and loss")
    antithetic_time: bool = option(
        True, "Spread the times of a step evenly instead of drawing each independently.", group="Noise and loss"
    )
    loss_weight: Literal["elbo", "uniform", "scheduler"] = option(
        "elbo",
        "Weight of a hidden token's loss: that of the bound (elbo), 1 (uniform), or 1 / its probability to be hidden "
        "(scheduler).",
    )
    loss_norm: Literal["token", "sequence", "masked"] = option(
        "token",
        "Divide the loss by all tokens that could be hidden (token), by those of each text and then by the texts "
        "(sequence), or by the hidden tokens (masked, DiffuLLaMA).",
        group="Noise and loss",
    )
    elbo_samples: int = option(
        8, "Corruptions of each text over which an evaluation averages the bound.", minimum=1, group="Noise and loss"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size and self.anneal_steps > 1:
            raise ValueError(
                f"`anneal_steps: {self.anneal_steps}` opens attention over whole texts, which `block_size: "
                f"{self.block_size}` keeps closed between blocks: unset one of them (`block_size: 0` if the "
                "checkpoint sets it)."
            )


@dataclass
class DiffusionTuningOptions(DiffusionOptions):
    """What `ddm-sft` adds: instructions and answers."""

    ddm_format: Literal["chat", "diffuseq"] = option(
        "chat",
        "Format of a row: LLaMA-Factory's `template` (chat), or `bos source sep target eos` (diffuseq, DiffuLLaMA).",
    )
    ddm_separator: str | None = option(
        None,
        "What separates source and target (`ddm_format: diffuseq`), a text of one token or a token's number; empty: "
        "the tokenizer's separator, or a new line if it has none.",
        label="Separator",
        group="Answers",
        when={"ddm_format": ("diffuseq",)},
    )
    ddm_padding: str | None = option(
        None,
        "What fills up a row and is learned with it (`ddm_format: diffuseq`), a text of one token or a token's "
        "number; empty: the tokenizer's padding token.",
        label="Padding",
        group="Answers",
        when={"ddm_format": ("diffuseq",)},
    )
    ddm_split_digits: bool = option(
        False, "Tokenize every digit by itself, in prompts and in answers.", label="Split digits", group="Answers"
    )
    eos_padding: Literal["never", "batch", "cutoff_len"] | None = option(
        None,
        "Pad an answer with EOS tokens, which are learned like the answer, up to the longest row of its batch (LLaDA) "
        "or up to `cutoff_len`. Empty: batch; `diffuseq` always pads up to `cutoff_len`, with the padding token.",
        group="Answers",
        when={"ddm_format": ("chat",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ddm_format == "chat" and self.ddm_separator is not None:
            raise ValueError(
                "`ddm_separator` belongs to `ddm_format: diffuseq`; under `chat` the template separates prompt and "
                "answer: leave it out."
            )
        if self.ddm_format == "chat" and self.ddm_padding is not None:
            raise ValueError(
                "`ddm_padding` belongs to `ddm_format: diffuseq`; under `chat` answers are padded as `eos_padding` "
                "says: leave it out."
            )
        if self.ddm_format == "diffuseq" and self.eos_padding not in (None, "cutoff_len"):
            raise ValueError(
                f"`ddm_format: diffuseq` pads every row up to `cutoff_len`: unset `eos_padding: {self.eos_padding}`."
            )
