"""Checkpoints that a run can go on from are told from those that were not written to their end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_embed.loading.whole_checkpoints import (
    CONTENTS_NAME,
    find_changed_bytes,
    find_damage,
    newest_whole_checkpoint,
    read_contents,
    write_contents,
)


def write_checkpoint(folder: Path) -> Path:
    """What the host's trainer writes."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(50.0)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"value": torch.arange(50.0)}, folder / name)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    return folder


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def list_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (remove("trainer_state.json"), "has no trainer_state.json"),
    "half a state": (cut("trainer_state.json"), "has a trainer_state.json"),
    "no weights": (remove("model.safetensors"), "has no "),
    "half the weights": (cut("model.safetensors"), "has a model.safetensors"),
    "no optimizer": (remove("optimizer.pt"), "has no "),
    "half an optimizer": (cut("optimizer.pt"), "has a optimizer.pt"),
    "half a random state": (cut("rng_state.pth"), "has a rng_state.pth"),
    "an empty file": (lambda folder: (folder / "scheduler.pt").write_bytes(b""), "has a scheduler.pt"),
}


@pytest.mark.parametrize("is_listed", [True, False], ids=["ours", "the-hosts"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, is_listed: bool, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-3")
    if is_listed:
        write_contents(checkpoint)
    assert find_damage(checkpoint) is None
    harm, sentence = DAMAGE[kind]
    harm(checkpoint)
    assert sentence in (find_damage(checkpoint) or "")


def test_a_missing_shard_and_a_list_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-3")
    list_shards(checkpoint)
    assert find_damage(checkpoint) == "has no model-2.safetensors"
    (checkpoint / CONTENTS_NAME).write_text('{"files": 3}')
    assert find_damage(checkpoint) == f"has a {CONTENTS_NAME} that cannot be read"
    with pytest.raises(ValueError, match="is damaged"):
        read_contents(checkpoint)


def test_without_states_of_the_training_there_need_not_be_an_optimizer(tmp_path: Path) -> None:
    """`save_only_model` leaves them all out."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint-3")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        remove(name)(checkpoint)
    assert find_damage(checkpoint) is None


def test_texts_may_be_edited(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-3")
    write_contents(checkpoint)
    (checkpoint / "config.json").write_text('{"edited": true}')
    assert find_damage(checkpoint) is None


def test_changed_bytes_in_a_state_are_found(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-3")
    assert find_changed_bytes(checkpoint) is None
    path = checkpoint / "optimizer.pt"
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(50).float().numpy().tobytes())
    content[place + 9] ^= 1
    path.write_bytes(content)
    assert find_damage(checkpoint) is None
    assert (find_changed_bytes(checkpoint) or "").startswith("has a optimizer.pt whose bytes have changed")


def test_the_newest_whole_one_is_found_by_its_number(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    write_checkpoint(tmp_path / "checkpoint-best")
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", [])
    cut("optimizer.pt")(tmp_path / "checkpoint-10")
    found, skipped = newest_whole_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-9"
    assert skipped == [f"{tmp_path / 'checkpoint-10'} has a optimizer.pt that ends too early."]
    for step in (2, 9):
        remove("trainer_state.json")(tmp_path / f"checkpoint-{step}")
    assert newest_whole_checkpoint(tmp_path)[0] is None
