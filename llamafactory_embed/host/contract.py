"""What we rely on in LLaMA-Factory, checked before anything of it is touched."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from packaging.specifiers import SpecifierSet


HOST_VERSIONS = ">=0.9.5,<0.9.6"


class HostMismatchError(Exception):
    """The installed LLaMA-Factory is not the one our seams were written for."""


def check_version() -> None:
    """The host's version must lie in the supported range."""
    installed = version("llamafactory")
    if not SpecifierSet(HOST_VERSIONS).contains(installed, prereleases=True):
        raise HostMismatchError(
            f"llamafactory {installed} is installed but this release of llamafactory-embed supports "
            f"{HOST_VERSIONS}: its stages are off, those of LLaMA-Factory still work."
        )


def check_signature(function: Callable[..., Any], *parameters: str) -> None:
    """A host function must still take the parameters that our seam passes on, in that order."""
    actual = tuple(inspect.signature(function).parameters)
    if actual != parameters:
        raise HostMismatchError(
            f"{function.__module__}.{function.__qualname__} takes ({', '.join(actual)}) instead of "
            f"({', '.join(parameters)}): this LLaMA-Factory was changed, the stages of llamafactory-embed are off."
        )


def attribute(owner: Any, name: str) -> Any:
    """An attribute of a host module or class that our seam needs."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise HostMismatchError(
            f"{getattr(owner, '__name__', owner)} has no `{name}`: this LLaMA-Factory was changed, "
            "the stages of llamafactory-embed are off."
        ) from None


def report_mismatch(mismatch: HostMismatchError) -> None:
    """Say it once a run, from the first process."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"llamafactory-embed: {mismatch}", file=sys.stderr)


def check_load_model(holder: Any) -> None:
    """The host's function that loads a model must still be called as our replacements of it are."""
    parameters = ("tokenizer", "model_args", "finetuning_args", "is_trainable", "add_valuehead")
    check_signature(attribute(holder, "load_model"), *parameters)
