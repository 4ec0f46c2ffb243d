"""How a text is denoised: our options and those of the host's GeneratingArguments in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..hparams.sampling import ALGORITHMS_WITH_PROBABILITY, SamplingOptions


if TYPE_CHECKING:
    from llamafactory.hparams import GeneratingArguments

    from ..model.families import Family


DEFAULT_ALGORITHM = "low_confidence"


@dataclass(frozen=True)
class SamplingSettings:
    """All options of the denoising loop. The defaults are greedy."""

    steps: int = 64
    algorithm: str = DEFAULT_ALGORITHM
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    logits_temp: float = 1.0
    alg_temp: float = 0.0
    block_length: int | None = None
    block_size: int | None = None
    """For a model trained with block diffusion: blocks are counted from the start of the text, and no block sees a
    later one."""
    cfg_scale: float = 0.0
    confidence_threshold: float | None = None
    confidence_factor: float | None = None
    cache: str = "none"
    cache_refresh_steps: int | None = None
    seed: int = 42

    @property
    def is_parallel(self) -> bool:
        """Whether the network's confidence decides how many positions a step reveals, not the number of steps."""
        return self.confidence_threshold is not None or self.confidence_factor is not None

    @classmethod
    def from_options(
        cls,
        options: SamplingOptions,
        generating_args: GeneratingArguments,
        *,
        family: Family | None = None,
        block_size: int | None = None,
        seed: int = 42,
    ) -> SamplingSettings:
        """The settings of a recipe. Without a `sampling_algorithm` those of the model's family apply, with the
        family's blocks where the recipe leaves them open; parallel decoding needs a probability and takes the default
        instead. The blocks of block diffusion are those of the model."""
        block_length = _block_length(options, family, block_size)
        if options.sampling_cache != "none" and block_length is None:
            raise ValueError(f"`sampling_cache: {options.sampling_cache}` works block by block: set `block_length`.")
        settings = cls(
            steps=options.diffusion_steps,
            algorithm=_algorithm(options, family),
            logits_temp=options.logits_temp,
            alg_temp=options.alg_temp,
            block_length=block_length,
            block_size=block_size,
            cfg_scale=options.cfg_scale,
            confidence_threshold=options.confidence_threshold,
            confidence_factor=options.confidence_factor,
            cache=options.sampling_cache,
            cache_refresh_steps=options.cache_refresh_steps,
            seed=seed,
        )
        return settings.with_generation(vars(generating_args))

    def with_generation(self, values: Mapping[str, Any]) -> SamplingSettings:
        """The settings changed by the host's generation options: `do_sample: false` is temperature 0 without filters,
        and None changes nothing."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
        changed = {name: values[name] for name in names if values.get(name) is not None}
        if values.get("do_sample") is False:
            changed |= {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
        settings = dataclasses.replace(self, **changed)
        if settings.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, not {settings.max_new_tokens}.")
        return settings


def _algorithm(options: SamplingOptions, family: Family | None) -> str:
    if options.sampling_algorithm is not None:
        return options.sampling_algorithm
    is_parallel = options.confidence_threshold is not None or options.confidence_factor is not None
    if family is None or (is_parallel and family.sampler not in ALGORITHMS_WITH_PROBABILITY):
        return DEFAULT_ALGORITHM
    return family.sampler


def _block_length(options: SamplingOptions, family: Family | None, block_size: int | None) -> int | None:
    if block_size is not None:
        if options.block_length not in (None, block_size):
            raise ValueError(
                f"`block_length: {options.block_length}` contradicts `block_size: {block_size}`, the blocks of the "
                "model's attention: unset `block_length`, or set `block_size: 0` to sample without them."
            )
        return block_size
    if options.block_length is None and options.sampling_algorithm is None and family is not None:
        return family.block_length
    return options.block_length
