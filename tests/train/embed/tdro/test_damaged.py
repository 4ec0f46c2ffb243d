"""What a run of `stage: tdro` goes on from, damaged: named and refused, or named and computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.tdro import reference_cache
from llamafactory_embed.train.embed.tdro.history import HISTORY_NAME, WeightHistory
from llamafactory_embed.train.embed.tdro.measure import UpdateMeasure
from llamafactory_embed.train.embed.tdro.reference_cache import read_losses, write_losses
from llamafactory_embed.train.embed.tdro.task_weights import TaskWeights
from llamafactory_embed.train.embed.tdro.trainer import read_state


TASKS = ["nouns", "words"]


def flip(content: bytes) -> bytes:
    """One digit is another."""
    place = content.rindex(b"5")
    return content[:place] + b"4" + content[place + 1 :]


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a line less": lambda content: content[: content.rstrip(b"\n").rindex(b"\n") + 1],
    "a digit": flip,
    "no text": lambda content: b"\xff" * 30,
    "other JSON": lambda content: b'[1]\n{"step": 1}\n',
    "other tasks": lambda content: content.replace(b"nouns", b"verbs"),
    "no numbers": lambda content: content.replace(b"0.25", b'"many"'),
    "deep": lambda content: b"[" * 100_000,
}


@pytest.fixture
def history() -> WeightHistory:
    """Of two updates, in the second of which a task had no query."""
    history = WeightHistory(TASKS, None)
    for step, counts in ((1, (3, 5)), (2, (8, 0))):
        losses = torch.tensor([0.25, 0.5])
        measure = UpdateMeasure(torch.tensor(counts), losses, losses, losses)
        history.add(step, 0.5, torch.tensor([0.25, 0.75]), measure)
    return history


@pytest.mark.parametrize("harm", [*HARMS, "removed"])
def test_a_damaged_history_is_refused(harm: str, history: WeightHistory, tmp_path: Path) -> None:
    history.save(tmp_path)
    again = WeightHistory(TASKS, None)
    again.load(tmp_path, 2, history.check_sum())
    assert again.entries == history.entries
    path = tmp_path / HISTORY_NAME
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(HARMS[harm](path.read_bytes()))
    # A checkpoint of an earlier version has no check sum, by which alone a digit is seen to have changed.
    for check_sum in (history.check_sum(), *[None] * (harm != "a digit")):
        with pytest.raises(ValueError, match=rf"{HISTORY_NAME} is missing or damaged \(.+\): go on from the check"):
            again.load(tmp_path, 2, check_sum)
    assert again.entries == history.entries


LOSSES = {7: 0.5, -3: 1.25, 2**62: 0.0}


def other_tensors(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path)


def change(harm: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(harm(path.read_bytes()))


HARMS_OF_CACHES: dict[str, Callable[[Path], Any]] = {
    "emptied": change(lambda content: b""),
    "cut off": change(lambda content: content[:-5]),
    "a bit of a loss": change(lambda content: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]),
    "JSON": change(lambda content: json.dumps(LOSSES).encode()),
    "other tensors": other_tensors(weight=torch.zeros(3)),
    "no check sum": other_tensors(examples=torch.tensor([1]), losses=torch.tensor([0.5])),
    "another shape": other_tensors(
        examples=torch.zeros(3, 2), losses=torch.zeros(3), check_sum=torch.zeros(16, dtype=torch.uint8)
    ),
    "another type": other_tensors(examples=torch.zeros(3, dtype=torch.bfloat16), losses=torch.zeros(3)),
}


@pytest.mark.parametrize("harm", HARMS_OF_CACHES)
def test_damaged_losses_of_a_reference_are_computed_again(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(reference_cache.logger, "warning_rank0", said.append)
    path = tmp_path / "losses.safetensors"
    write_losses(path, LOSSES)
    assert read_losses(path) == LOSSES
    HARMS_OF_CACHES[harm](path)
    assert not said
    assert read_losses(path) == {}
    (sentence,) = said
    assert sentence.startswith(f"{path} is damaged (")
    assert sentence.endswith("): the losses are computed again, and it is replaced.")


HARMS_OF_STATES: dict[str, Callable[[Path], Any]] = {
    "emptied": change(lambda content: b""),
    "cut off": change(lambda content: content[:-5]),
    "JSON": change(lambda content: b"{}"),
    "another state": lambda path: torch.save({"param_groups": []}, path),
    "another type": lambda path: torch.save([1, 2], path),
    "fewer tasks": lambda path: torch.save(torch.load(path) | {"tasks": ["nouns"]}, path),
    "no optimizer": lambda path: torch.save(torch.load(path) | {"optimizer": {}}, path),
}


@pytest.mark.parametrize("harm", HARMS_OF_STATES)
def test_damaged_weights_of_tasks_are_refused(harm: str, tmp_path: Path) -> None:
    weights = TaskWeights([0.5, 0.5], TdroOptions())
    path = tmp_path / "task_weights.pt"
    torch.save({"tasks": TASKS, **weights.state_dict()}, path)
    assert read_state(path)["tasks"] == TASKS
    HARMS_OF_STATES[harm](path)
    with pytest.raises(ValueError, match=r"task_weights\.pt .*: go on from the checkpoint before"):
        read_state(path)
