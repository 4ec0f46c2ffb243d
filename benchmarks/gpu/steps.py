"""The steps in their order of importance, and what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .record import Record


HERE = "benchmarks.gpu"


@dataclass(frozen=True)
class Step:
    """A function `module:name` that takes a `Bench`, and the seconds after which it is stopped."""

    name: str
    title: str
    seconds: int
    function: str


@dataclass(frozen=True)
class Bench:
    """What a step is given."""

    device: str
    small: bool
    """A rehearsal: tiny sizes."""
    record: Record
    folder: Path
    """For files; gone when the step ends."""

    def size(self, real: Any, small: Any) -> Any:
        """A size, or the rehearsal's."""
        return small if self.small else real

    @property
    def backend(self) -> str:
        """The attention that is measured."""
        return "flash_attention_2" if self.device == "cuda" else "sdpa"


STEPS = (
    Step("machine", "What the machine is and can do", 30, f"{HERE}.right_machine:measure"),
    Step("attention", "Who sees whom: leaks, packed and separate, masks", 60, f"{HERE}.right_attention:measure"),
    Step(
        "training",
        "GradCache, checkpointing, Liger: the same gradients",
        45,
        f"{HERE}.right_training:measure",
    ),
    Step("contrastive", "A contrastive step, full and LoRA", 75, f"{HERE}.fast_contrastive:measure"),
    Step("peer", "The same step by sentence-transformers", 75, f"{HERE}.fast_peer:measure"),
    Step("grad_cache", "GradCache with 4,096 and 65,536 rows", 90, f"{HERE}.fast_grad_cache:measure"),
    Step("hidden_tokens", "Steps of mntp and ddm", 45, f"{HERE}.fast_hidden_tokens:measure"),
    Step("encode", "Encoding", 45, f"{HERE}.fast_encode:measure"),
    Step("golden", "The numbers of the original projects", 75, f"{HERE}.right_golden:measure"),
    Step("sampling", "Denoising with and without caches", 60, f"{HERE}.fast_sampling:measure"),
    Step("compiled", "torch.compile of the decoder layers", 60, f"{HERE}.fast_compiled:measure"),
    Step("quantized", "QLoRA trains and merges", 45, f"{HERE}.right_quantized:measure"),
    Step("recipes", "Recipes through LLaMA-Factory, interrupted and resumed", 120, f"{HERE}.right_recipes:measure"),
)


def find_step(name: str) -> Step:
    """The step of that name; a sentence for a name that none has."""
    for step in STEPS:
        if step.name == name:
            return step
    raise ValueError(f"`--steps` knows no step `{name}`; there are {', '.join(step.name for step in STEPS)}.")


def run_step(step: Step, bench: Bench) -> None:
    """Call a step's function; its exception is a failed check."""
    module, _, name = step.function.partition(":")
    bench.record.attempt(step.title, lambda: getattr(import_module(module), name)(bench))
