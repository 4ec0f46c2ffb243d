"""`llamafactory-embed sample CHECKPOINT`: write texts with a diffusion language model and watch them settle."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..hparams.command_line import add_options
from ..hparams.option import REQUIRED, make_options, option
from ..hparams.sampling import SamplingOptions


if TYPE_CHECKING:
    from .loop import Frame
    from .sampler import Sampler

# Options of a recipe that mean nothing for single texts.
FOR_DATA_SETS = ("predict_task", "prompt_tokens", "gap_tokens", "denoising_pictures")


@dataclass(frozen=True)
class SampleOptions:
    """What is written, by which model, and how it is shown."""

    checkpoint: str = option(
        REQUIRED, "Folder or hub name of the model or adapter.", positional=True, metavar="CHECKPOINT"
    )
    prompt: str | None = option(None, "Text to continue; without it and --infill, a text from nothing.")
    chat: str | None = option(None, "Question, written with the tokenizer's chat template.", metavar="PROMPT")
    infill: str | None = option(None, "Text with gaps: [[8]] where eight tokens are missing.", metavar="TEXT")
    count: int = option(1, "Number of texts.")
    gif: Path | None = option(
        None, "File that shows how the first text settles: an animated .gif, or a picture as .png.", metavar="FILE"
    )
    quiet: bool = option(False, "Print the finished texts only.")
    device: str | None = option(None, "Device: cpu, cuda, …; default: cuda if there is one.")
    seed: int = option(42, "Seed of the random draws.")
    mask_token: str | None = option(
        None, "Token that stands for a hidden one; default: as the checkpoint says.", metavar="TOKEN"
    )
    shift: bool | None = option(
        None, "Whether a token is predicted one position earlier; default: as the checkpoint says."
    )
    block_size: int | None = option(
        None,
        "Tokens of a block (block diffusion), 0: none; empty: as the checkpoint says.",
        minimum=0,
        metavar="TOKENS",
    )


@dataclass(frozen=True)
class GenerationOptions:
    """LLaMA-Factory's options of that name."""

    max_new_tokens: int = option(64, "Tokens to write.", flags=("--tokens",), metavar="TOKENS")
    temperature: float = option(0.95, "Divides the logits; 0: always the most probable token.")
    top_p: float = option(0.7, "Draw from the most probable tokens that make up this share.")
    top_k: int = option(50, "Draw from this many of the most probable tokens; 0: from all.")
    repetition_penalty: float = option(1.0, "Above 1: makes tokens that the text has already less probable.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; those of the denoising are the options of a recipe."""
    about_the_text = ("prompt", "chat", "infill")
    names = [field.name for field in dataclasses.fields(SampleOptions)]
    add_options(parser.add_mutually_exclusive_group(), SampleOptions, about_the_text)
    add_options(parser, SampleOptions, [name for name in names if name not in about_the_text])
    add_options(parser.add_argument_group("generation (LLaMA-Factory's options)"), GenerationOptions)
    add_options(
        parser.add_argument_group("denoising (docs/sampling.md)"),
        SamplingOptions,
        [field.name for field in sampling_fields()],
    )


def sampling_fields() -> list[dataclasses.Field[Any]]:
    """The options of a recipe that apply to single texts."""
    return [field for field in dataclasses.fields(SamplingOptions) if field.name not in FOR_DATA_SETS]


def run(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, denoise, print."""
    if arguments.count < 1:
        raise ValueError(f"`--count` must be at least 1, not {arguments.count}.")
    if arguments.block_size is not None and arguments.block_size < 0:
        raise ValueError(f"`--block-size` must be at least 0, not {arguments.block_size}.")
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingOptions)}
    asked = {field.name: getattr(arguments, field.name) for field in sampling_fields()}
    options = make_options(SamplingOptions, defaults | asked)

    from ..loading.checkpoint import load_diffusion_model
    from ..loading.masked_tokens import MaskedTokenRequest
    from .checkpoint import make_sampler
    from .settings import SamplingSettings

    request = MaskedTokenRequest(arguments.mask_token, arguments.shift, block_size=arguments.block_size)
    loaded = load_diffusion_model(arguments.checkpoint, request, device=arguments.device)
    generation = SimpleNamespace(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        repetition_penalty=arguments.repetition_penalty,
    )
    settings = SamplingSettings.from_options(
        options, generation, family=loaded.family, block_size=loaded.settings.block_size, seed=arguments.seed
    )
    for text in write_texts(make_sampler(loaded, settings), arguments):
        print(text)
    return 0


def write_texts(sampler: Sampler, arguments: argparse.Namespace) -> list[str]:
    """The finished texts; the first one is shown while it settles."""
    from .pictures import DenoisingRecorder, draw_denoising
    from .rows import parse_gaps

    recorder = DenoisingRecorder([0])
    with Watcher(sampler, arguments.quiet) as watcher:

        def watch(frame: Frame) -> None:
            recorder(frame)
            watcher.show(frame)

        if arguments.infill is not None:
            tokens, holes = parse_gaps(arguments.infill, sampler.tokenizer, sampler.mask_token)
            generated = sampler.fill([tokens] * arguments.count, [holes] * arguments.count, watch=watch)
        else:
            generated = sampler.complete([_prompt(sampler, arguments)] * arguments.count, watch=watch)
    if arguments.gif is not None:
        draw_denoising(recorder.snapshots(0), sampler.tokenizer, arguments.gif)
    shown = [each.tokens if arguments.chat is not None else each.text for each in generated]
    return [sampler.decode(tokens) for tokens in shown]


def _prompt(sampler: Sampler, arguments: argparse.Namespace) -> list[int]:
    if arguments.chat is not None:
        if sampler.tokenizer.chat_template is None:
            raise ValueError("`--chat` needs a tokenizer with a chat template, and this one has none: use `--prompt`.")
        message = [{"role": "user", "content": arguments.chat}]
        encoded = sampler.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])
    return [] if arguments.prompt is None else list(sampler.tokenizer(arguments.prompt)["input_ids"])


class Watcher:
    """A watcher that shows the first text in its place on the terminal, if there is one."""

    def __init__(self, sampler: Sampler, quiet: bool) -> None:
        from ..terminal import SettlingText

        self.sampler = sampler
        self.is_on = sys.stdout.isatty() and not quiet
        self.screen = SettlingText(sys.stdout)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_on:
            self.screen.clear()

    def show(self, frame: Frame) -> None:
        """Draw the first text, if it is still being denoised."""
        if self.is_on and frame.rows[0] == 0:
            canvas, real = frame.canvas, frame.canvas.real[0]
            self.screen.show(self.sampler.show(canvas.tokens[0][real].tolist(), canvas.masked[0][real].tolist()))
