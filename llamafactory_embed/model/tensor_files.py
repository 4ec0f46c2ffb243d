"""Files of weights that anybody may have written: what they hold, read without running anything.

A file of safetensors is a header of JSON and numbers. A file of torch is a pickle, of which only weights are read; an
object in it, which could run code while it is read, is refused.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_shapes(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every weight in a file, by its name, without reading the weights; a sentence for a file that
    is cut off or damaged."""
    if file.suffix != ".safetensors":
        loaded = load_without_code(file, "meta")
        return {name: (tuple(each.shape), str(each.dtype).removeprefix("torch.")) for name, each in loaded.items()}
    with _damage_named(file), safe_open(file, framework="pt") as opened:
        names = opened.keys()  # the file itself is no mapping
        slices = {name: opened.get_slice(name) for name in names}
        return {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}


def load_without_code(path: Path, device: str = "cpu", *, mmap: bool = False) -> dict[str, Tensor]:
    """A file of torch with nothing but weights in it: an object could run code while it is read."""
    try:
        loaded = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects, which could run code, and is not read: save the weights alone "
            "(`state_dict()`), as safetensors."
        ) from error
    except Exception as error:  # bytes that are no pickle make the unpickler fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} cannot be read ({reason}): copy it from the checkpoint again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(each, Tensor) for each in loaded.values()):
        raise ValueError(f"{path} must map names to weights: save the model's `state_dict()`.")
    return loaded


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a file, one by one."""
    if file.suffix != ".safetensors":
        yield from load_without_code(file, mmap=True).items()
        return
    with _damage_named(file), safe_open(file, framework="pt") as opened:
        names = opened.keys()  # the file itself is no mapping
        for name in names:
            yield name, opened.get_tensor(name)


def load_safetensors(file: Path) -> dict[str, Tensor]:
    """All weights of a file of safetensors."""
    return dict(read_tensors(file))


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut off or damaged ({error}): copy it from the checkpoint again.") from error
