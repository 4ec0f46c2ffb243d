"""`llamafactory-embed sample CHECKPOINT`: write texts with a diffusion language model and watch them settle."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..hparams.option import choices, make_options, scalar_type
from ..hparams.sampling import SamplingOptions


if TYPE_CHECKING:
    from .loop import Frame
    from .sampler import Sampler

# Options of a recipe that have no meaning for single texts.
FOR_DATA_SETS = ("predict_task", "prompt_tokens", "gap_tokens", "denoising_pictures")
SHORT = {"diffusion_steps": "--steps", "sampling_algorithm": "--algorithm", "sampling_cache": "--cache"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; those of the sampling are the options of a recipe."""
    parser.add_argument("checkpoint", help="folder or hub name of the model or adapter")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="what the text begins with; without it and --infill, a text from nothing")
    what.add_argument("--chat", metavar="PROMPT", help="a question, written with the tokenizer's chat template")
    what.add_argument("--infill", metavar="TEXT", help="a text with gaps: [[8]] where eight tokens are missing")
    parser.add_argument("--count", type=int, default=1, help="number of texts (default: %(default)s)")
    parser.add_argument("--gif", type=Path, help="write how the first text settles: a .gif, or a picture as .png")
    parser.add_argument("--quiet", action="store_true", help="print the finished texts only")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    parser.add_argument("--mask-token", help="the token that hides another (default: what the checkpoint says)")
    parser.add_argument(
        "--shift",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a token is predicted one position earlier",
    )
    parser.add_argument(
        "--block-size", type=int, help="blocks of block diffusion, 0: none (default: what the checkpoint says)"
    )
    host = parser.add_argument_group("generation (LLaMA-Factory's options)")
    host.add_argument("--max-new-tokens", "--tokens", type=int, default=64, help="(default: %(default)s)")
    host.add_argument(
        "--temperature", type=float, default=0.95, help="0: the most probable tokens (default: %(default)s)"
    )
    host.add_argument("--top-p", type=float, default=0.7, help="(default: %(default)s)")
    host.add_argument("--top-k", type=int, default=50, help="(default: %(default)s)")
    host.add_argument("--repetition-penalty", type=float, default=1.0, help="(default: %(default)s)")

    denoising = parser.add_argument_group("denoising (docs/sampling.md)")
    hints = typing.get_type_hints(SamplingOptions)
    for field in sampling_fields():
        names = [f"--{field.name.replace('_', '-')}", *([SHORT[field.name]] if field.name in SHORT else [])]
        denoising.add_argument(
            *names,
            dest=field.name,
            default=field.default,
            type=scalar_type(hints[field.name]) or str,
            choices=choices(hints[field.name]) or None,
            help=field.metadata["help"].replace("%", "%%")
            + ("" if field.default is None else f" (default: {field.default})"),
        )


def sampling_fields() -> list[dataclasses.Field[Any]]:
    """The options that make sense here."""
    return [field for field in dataclasses.fields(SamplingOptions) if field.name not in FOR_DATA_SETS]


def run(arguments: argparse.Namespace) -> int:
    """Load, denoise, print."""
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
    """Shows the first text in its place on the terminal, if there is one."""

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
        """Draw it, if it is still at work."""
        if self.is_on and frame.rows[0] == 0:
            canvas, real = frame.canvas, frame.canvas.real[0]
            self.screen.show(self.sampler.show(canvas.tokens[0][real].tolist(), canvas.masked[0][real].tolist()))
