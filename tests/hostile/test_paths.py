"""No path in a file of a stranger leads out of the folder that it lies in, and no name becomes a command."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from llamafactory_embed.chain.definition import read_chain
from llamafactory_embed.foreign import is_plain_name
from llamafactory_embed.loading.sentence_transformers_folder import read_dense_layers
from llamafactory_embed.loading.weights import find_weight_files
from llamafactory_embed.materials.update import MANIFEST, write_materials
from llamafactory_embed.recipe.pack import PATH_OPTIONS


OUTSIDE = ("../secret.safetensors", "/etc/passwd", "..", "a/../../b", "\\\\host\\x", "a\0b", "", 3)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_shards_of_its_own_folder_only(name: object, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="file of its own folder"):
        find_weight_files(folder)


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != ""])
def test_modules_lie_in_the_folder_of_modules_json(name: object, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": name}]))
    with pytest.raises(ValueError, match="folders in this one"):
        read_dense_layers(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "$(touch x)", "a b", "-x", "", "a;b", 3, None])
def test_a_step_of_a_chain_writes_below_its_folder(name: object, tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(json.dumps({"output_dir": "saves", "steps": [{"name": name, "eval": ["x"]}]}))
    with pytest.raises(ValueError, match="of letters, digits and `_`"):
        read_chain(tmp_path / "chain.yaml")


def test_what_init_writes_stays_in_its_folder(tmp_path: Path) -> None:
    """The manifest of a folder lists files; none that it names outside is read, written or removed."""
    folder, outside = tmp_path / "folder", tmp_path / "outside.yaml"
    folder.mkdir()
    outside.write_text("mine")
    (folder / MANIFEST).write_text(json.dumps({"files": {"../outside.yaml": "0" * 64, str(outside): "0" * 64}}))
    write_materials(folder, ("data",))
    assert outside.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["folder", "outside.yaml"]


def test_plain_names() -> None:
    assert all(map(is_plain_name, ("model-00001-of-00002.safetensors", "1_Dense", "..a", "é")))
    assert not any(map(is_plain_name, OUTSIDE))


# Options of the host that sound like places and are none.
NO_PLACES = {"overwrite_output_dir"}


def test_a_packed_recipe_is_looked_at_for_every_option_that_names_a_place() -> None:
    from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments

    kinds = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments)
    names = {each.name for kind in kinds for each in dataclasses.fields(kind)}
    places = {name for name in names if name.endswith(("_dir", "_path", "_folder", "_file", "_storage"))}
    assert places - set(PATH_OPTIONS) - NO_PLACES == set()
