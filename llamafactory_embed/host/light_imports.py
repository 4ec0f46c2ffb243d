"""Import the host's parser without what only a run needs.

The parser takes torch and transformers, and, for a few names, half of what is installed: peft, datasets, the models'
base class with the compiler behind it, the readers of images and sounds. A check of a recipe never calls any of it.
Inside of `stand_ins()` these packages are replaced by modules whose names are empty classes. Whoever calls or extends
one of them gets a `StandInUsedError`, which is no `Exception`, so that nobody takes it for a complaint about a recipe:
the caller then starts again in a process with the real packages.

What was imported this way stays so in this process: only a process that ends with the check may do it.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from ..stages import registry
from ..stages.own import __name__ as OWN_STAGES_MODULE


STAND_INS = frozenset(
    (
        *("av", "datasets", "librosa", "matplotlib", "pandas", "peft", "PIL", "pyarrow", "ray", "scipy", "sklearn"),
        *("torchaudio", "torchvision", "transformers.modelcard", "transformers.modeling_utils"),
        *("transformers.models.auto.auto_factory", "transformers.models.mllama"),
    )
)
# Values among the empty classes that the parser works with.
CONSTANTS: dict[str, Any] = {
    "peft.utils.WEIGHTS_NAME": "adapter_model.bin",
    "peft.utils.SAFETENSORS_WEIGHTS_NAME": "adapter_model.safetensors",
}
# Packages of the host whose modules are imported one by one: its `__init__` imports what loads data.
EMPTY_PACKAGES = frozenset(("llamafactory.data",))
# What cannot work without the real packages.
NEEDS_ALL = ("llamafactory.data.loader", "llamafactory.model", "llamafactory.train", "trl")


class StandInUsedError(BaseException):
    """Something needs a package that is not there in this process."""


class StandInClass(type):
    """A name of a package that is not there: it can be imported and named, not used."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> StandInClass:
        if bases:
            raise StandInUsedError(f"{name} extends {bases[0].__qualname__}.")
        return super().__new__(cls, name, bases, namespace)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandInClass(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise StandInUsedError(f"{cls.__qualname__} is called.")


class StandInModule(ModuleType):
    """A package that is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full_name = f"{self.__name__}.{name}"
        value = CONSTANTS[full_name] if full_name in CONSTANTS else StandInClass(full_name, (), {})
        setattr(self, name, value)
        return value


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for every module of the packages in `STAND_INS`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if _is_in(name, NEEDS_ALL):
            raise StandInUsedError(f"{name} is imported.")
        if name in EMPTY_PACKAGES:
            real = importlib.machinery.PathFinder.find_spec(name, path)
            spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
            spec.submodule_search_locations = list((real and real.submodule_search_locations) or ())
            return spec
        if not _is_in(name, STAND_INS) or not _is_installed(name.partition(".")[0]):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name) if spec.name in EMPTY_PACKAGES else StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


def _is_in(name: str, packages: Sequence[str] | frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in packages for count in range(1, len(parts) + 1))


def _is_installed(package: str) -> bool:
    """A package that is missing must stay so: transformers asks what there is."""
    return importlib.machinery.PathFinder.find_spec(package) is not None


def are_stand_ins_enough() -> bool:
    """Whether a check works without the packages: none is loaded yet, and no stage of another package, whose check may
    need whatever it likes, is registered."""
    stages = registry.load_registry().stages.values()
    own_package = OWN_STAGES_MODULE.partition(".")[0]
    is_own = all(stage.options.__module__.startswith(f"{own_package}.") for stage in stages)
    return is_own and not any(name in sys.modules for name in (*STAND_INS, "llamafactory", "transformers"))


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Put stand-ins in the place of what a check of a recipe does not use."""
    finder = StandInFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
