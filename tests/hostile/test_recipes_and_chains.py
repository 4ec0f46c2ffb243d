"""Recipes, packed recipes, chains, and files of other tools: whatever is in them, and wherever they point."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_embed.chain.definition import read_chain
from llamafactory_embed.chain.run import words_of
from llamafactory_embed.recipe.check import check_recipe
from llamafactory_embed.recipe.comparison import compare_recipes, show_recipe
from llamafactory_embed.recipe.conversions import TOOLS
from llamafactory_embed.recipe.convert import convert_file
from llamafactory_embed.recipe.pack import pack_recipe
from tests.hostile.strategies import DEEP_JSON, bad_bytes, changed, json_files, texts, values, yaml_files
from tests.hostile.verdict import a_result_or_a_sentence, hostile


RECIPE: dict[str, Any] = {
    "stage": "contrastive", "do_train": True, "model_name_or_path": "model", "dataset": "rows", "dataset_dir": "data",
    "output_dir": "saves/x", "template": "default", "finetuning_type": "lora", "learning_rate": 1e-4, "bf16": False,
    "objectives": {"rows": {}}, "deepspeed": None, "use_cpu": True,
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "file_name": "rows.jsonl", "formatting": "retrieval", "columns": {"query": "q"}, "task": "t", "instruction": "i",
    "corpus": "texts.jsonl", "objective": {}, "num_samples": 3,
}  # fmt: skip
PACKED = {"packed": {"data": {"rows": {"entry": "0", "file_name": {"sha256": "0"}}}, "versions": {"torch": "1"}}}
CHAIN = {"output_dir": "saves/c", "steps": [{"name": "a", "train": "recipe.yaml", "options": {"seed": 1}}]}


def dump(value: Any) -> bytes:
    """Values that YAML has no notation for (a lone surrogate) are left out."""
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")


engines = st.fixed_dictionaries({"deepspeed": st.sampled_from(DEEP_JSON) | values | bad_bytes.map(repr)})
recipes = (changed(RECIPE) | engines.map(RECIPE.__or__)).map(dump) | yaml_files
blocks = (changed(PACKED["packed"]) | values).map(lambda value: dump({"packed": value})) | yaml_files


@hostile(3)
@given(recipes, blocks, json_files(st.fixed_dictionaries({"rows": changed(ENTRY)})))
def test_recipes_are_checked_shown_compared_and_packed(recipe: bytes, block: bytes, info: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = b"\n".join(b"#| " + line for line in block.split(b"\n"))
        (folder / "recipe.yaml").write_bytes(recipe + b"\n" + lines + b"\n")
        (folder / "data").mkdir()
        (folder / "data" / "dataset_info.json").write_bytes(info)
        (folder / "plain.yaml").write_bytes(dump(RECIPE))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            with a_result_or_a_sentence("recipe check"):
                assert all(problem.sentence for problem in check_recipe("recipe.yaml"))
            with a_result_or_a_sentence("recipe show", "llamafactory", "transformers"):
                show_recipe(Path("recipe.yaml"), True)
            with a_result_or_a_sentence("recipe diff", "llamafactory", "transformers"):
                compare_recipes(Path("plain.yaml"), Path("recipe.yaml"))
            with a_result_or_a_sentence("recipe pack"):
                pack_recipe(Path("recipe.yaml"))


step_values = values | st.sampled_from(["$a", "$b", "$", ["$a"], "recipe.yaml", {"a": "$a"}])
steps = st.fixed_dictionaries(
    {},
    optional={
        "name": texts | values,
        "train": step_values,
        "merge": step_values,
        "options": values,
        "eval": step_values,
    },
)
chains = st.fixed_dictionaries(
    {"steps": st.lists(steps, max_size=3) | values, "output_dir": texts | values}, optional={"more": values}
)


@hostile(50)
@given(chains.map(dump) | changed(CHAIN).map(dump) | yaml_files)
def test_chains(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        Path("recipe.yaml").write_bytes(dump(RECIPE))
        Path("chain.yaml").write_bytes(content)
        with a_result_or_a_sentence("chain"):
            for step in read_chain(Path("chain.yaml")).steps:
                assert all(isinstance(word, str) for word in words_of(step.options))
                assert Path(step.output).parent == Path(yaml.safe_load(content)["output_dir"])
                assert step.fingerprint


flags = sorted({flag.name for tool in TOOLS.values() for flag in tool.flags})
shell_words = (
    st.sampled_from([f"--{name}" for name in flags])
    | texts
    | st.sampled_from(
        [
            "A=$A$A$A",
            "A+=$A",
            "export",
            "${A:-$A}",
            "$((4/0))",
            "$((9*9))",
            "$((" + "9" * 5000 + "*2))",
            '"',
            "'",
            "\\",
            "#",
            "²",
        ]
    )
)
scripts = st.lists(st.lists(shell_words, max_size=4).map(" ".join), max_size=6).map("\n".join)
settings_of_tools = st.dictionaries(st.sampled_from(flags), values, max_size=5)


@hostile(50)
@given(
    scripts.map(lambda text: (".sh", text.encode("utf-8", "replace")))
    | json_files(settings_of_tools).map(lambda content: (".json", content))
    | (settings_of_tools.map(dump) | yaml_files).map(lambda content: (".yaml", content)),
    st.sampled_from([None, *TOOLS]),
)
def test_files_of_other_tools(file: tuple[str, bytes], tool: str | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "old" + file[0])
        path.write_bytes(file[1])
        with a_result_or_a_sentence("recipe convert"):
            convert_file(path, tool)


def test_variables_of_variables_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old.sh"
    path.write_text("A=xxxxxxxxxx\n" + "A=$A$A$A$A$A$A$A$A$A$A\n" * 30 + "run --lr $A\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1,048,576 characters"):
        convert_file(path)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", "holds the alias itself"),
        ("[" * 5000, "too deep"),
        ("a: 0x" + "f" * 9000, "more than 1000 digits"),
        ("a: !!bool x", "cannot be read"),
        ("a: " + "x" * 2**20, "is larger than 1,048,576 bytes"),
    ],
)
def test_a_recipe_that_no_reader_can_hold_is_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    (complaint,) = check_recipe(tmp_path / "recipe.yaml")
    assert problem in complaint.sentence


def test_settings_of_an_engine_that_no_reader_can_hold_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("deepspeed: '" + '{"a":' * 9000 + "'", encoding="utf-8")
    told = [problem.sentence for problem in check_recipe(tmp_path / "recipe.yaml")]
    assert any(sentence.endswith("is not valid JSON: its brackets are too deep.") for sentence in told)


def test_a_registry_of_odd_entries_is_told_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(dump(RECIPE))
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"rows": {"file_name": 3, "formatting": ["retrieval"]}}))
    told = "\n".join(problem.sentence for problem in check_recipe("recipe.yaml"))
    assert "`file_name`" in told
    assert "formatting" in told
