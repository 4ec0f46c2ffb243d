"""`recipe list`, `show`, `diff` and `pack`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from llamafactory_embed.cli import main
from llamafactory_embed.recipe import inspect_recipe
from llamafactory_embed.recipe.catalogue import find_examples, find_recipe, first_sentence, list_examples


ROOT = Path(__file__).parents[2]
RECIPE = """\
# A recipe of mine. Its second sentence.
#
#   llamafactory-cli train recipe.yaml

### model
model_name_or_path: organisation/model
hub_token: hf_abcdefghijklmnopqrstuvwxyz  # mine

### method
stage: contrastive
do_train: true
finetuning_type: lora
lora_rank: 8
deepspeed: ds.json

### dataset
dataset_dir: sets
dataset: >-
  pairs,
  others
output_dir: saves/run
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe and two data sets."""
    (tmp_path / "sets").mkdir()
    entries = {
        "pairs": {"file_name": "pairs.jsonl", "formatting": "retrieval", "instruction": "Find it"},
        "others": {"file_name": "others", "formatting": "retrieval"},
    }
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps(entries))
    (tmp_path / "sets" / "pairs.jsonl").write_text(
        '{"query": "a", "positive": "b"}\n\n{"query": "c", "positive": "d"}\n'
    )
    (tmp_path / "sets" / "others").mkdir()
    (tmp_path / "sets" / "others" / "x.jsonl").write_text('{"query": "a", "positive": "b"}\n')
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(name: str, *pairs: tuple[str, str], source: str = RECIPE) -> str:
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    Path(name).write_text(source)
    return name


# ---------------------------------------------------- list, show ----------------------------------------------------


def test_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    examples = find_examples()
    paths = [path for path in examples.rglob("*.yaml") if path.parent.name not in ("accelerate", "deepspeed")]
    assert {each.path for each in list_examples()} == set(paths)
    assert main(["recipe", "list", "--json", "WordNet", "lora"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "quickstart/wordnet_lora"]
    assert row["stage"] == "contrastive"
    assert row["model"] == "models/smollm2-6-layers"
    assert row["purpose"].startswith("The quick start: SmolLM2-135M")
    assert main(["recipe", "list", "nothing-of-the-kind"]) == 1


def test_examples_are_found_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_embed.recipe import catalogue

    package = tmp_path / "site-packages" / "llamafactory_embed"
    monkeypatch.setattr(catalogue, "PACKAGE", package)
    with pytest.raises(ValueError, match="has no recipes"):
        find_examples()
    (package / "materials" / "files" / "examples" / "quickstart").mkdir(parents=True)
    assert find_examples() == package / "materials" / "files" / "examples"


def test_the_first_sentence() -> None:
    assert first_sentence("# LLM2Vec, of Mistral-7B (B. et al. 2024, arXiv 2404.05961).\n#\n# More.") == (
        "LLM2Vec, of Mistral-7B (B. et al. 2024, arXiv 2404.05961)"
    )
    assert first_sentence("# One line\n# and another one. A second.\n") == "One line and another one"


def test_a_recipe_by_its_last_word_or_path() -> None:
    assert find_recipe("wordnet_lora") == find_recipe("quickstart/wordnet_lora")
    assert find_recipe("a/b.yaml") == Path("a/b.yaml")
    with pytest.raises(ValueError, match="did you mean `wordnet_lora`"):
        find_recipe("wordnet_lra")


def test_show_marks_what_runs_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    changed("shown.yaml", ("lora_rank: 8", "lora_rank: 8\nlora_alpha:"), ("deepspeed: ds.json\n", ""))
    assert main(["recipe", "show", "shown.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "lora_alpha:  # runs as 16" in lines
    assert "lora_rank: 8" in lines  # as it is written
    assert "  others" in lines  # a list with commas is no other value
    assert main(["recipe", "show", "shown.yaml", "--full"]) == 0
    full = yaml.safe_load(capsys.readouterr().out)
    assert full["loss_temperature"] == 0.05
    assert full["learning_rate"] == 5e-5
    assert "mlm_probability" not in full  # another stage's


# ------------------------------------------------------- diff --------------------------------------------------------


def test_a_difference_in_form_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(
        "other.yaml",
        ("lora_rank: 8", "lora_rank: 8\nlora_alpha: 16\nloss_temperature: 5e-2"),  # defaults, said
        ("dataset: >-\n  pairs,\n  others", "dataset: [pairs, others]"),
        ("# A recipe of mine.", "# Another header."),
    )
    assert main(["recipe", "diff", "recipe.yaml", other]) == 0
    assert capsys.readouterr().out == "no difference in effect\n"


def test_what_differs_in_effect(capsys: pytest.CaptureFixture[str]) -> None:
    other = changed("other.yaml", ("lora_rank: 8", "lora_rank: 16\npooling: last"))
    assert main(["recipe", "diff", "recipe.yaml", other]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "lora_alpha: 16 (default) → 32 (default)",  # follows the rank
        "lora_rank: 8 → 16",
        "pooling: mean (default) → last",
    ]


def test_no_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "diff", "recipe.yaml", changed("x.yaml", ("lora_rank", "lora_rnk"))]) == 1
    assert "`lora_rnk` is not an option" in capsys.readouterr().err
    assert main(["recipe", "show", "nowhere.yaml"]) == 1


# ------------------------------------------------------- pack --------------------------------------------------------


def pack(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["recipe", "pack", "recipe.yaml", "-o", "packed.yaml"]) == 0
    capsys.readouterr()
    return Path("packed.yaml").read_text("utf-8")


def problems(name: str = "packed.yaml") -> list[str]:
    return [problem.sentence for problem in inspect_recipe(name).problems]


def test_a_packed_recipe_is_one_file_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = pack(capsys)
    options = yaml.safe_load(text)
    assert options["deepspeed"] == {"zero_optimization": {"stage": 2}}
    assert options["dataset"] == "pairs, others"
    assert problems() == []
    assert "A recipe of mine" in text  # its comments stay

    record = yaml.safe_load("\n".join(line[3:] for line in text.splitlines() if line.startswith("#|")))["packed"]
    content = Path("sets/pairs.jsonl").read_bytes()
    assert record["data"]["pairs"]["file_name"] == {"sha256": hashlib.sha256(content).hexdigest(), "rows": 2}
    assert record["data"]["others"]["file_name"]["rows"] == 1
    assert record["versions"]["llamafactory"].startswith("0.9.5")
    assert record["revision"] is None  # no repository here


@pytest.mark.parametrize("names", ["[-368, pairs]", "7", "{pairs: 1}", "true"])
def test_names_that_are_none_are_those_of_no_data(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("dataset: >-\n  pairs,\n  others", f"dataset: {names}"))
    assert main(["recipe", "pack", "recipe.yaml"]) == 0
    assert ("pairs" in capsys.readouterr().out.partition("#| packed")[2]) == (names == "[-368, pairs]")
    assert inspect_recipe("recipe.yaml")


def test_a_secret_never_enters_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "word-of-passage")
    changed(
        "recipe.yaml", ("# A recipe of mine.", "# Run as HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz by word-of-passage.")
    )
    text = pack(capsys)
    assert "hf_abc" not in text
    assert "word-of-passage" not in text
    assert "hub_token: left out" in text


def test_places_of_this_machine_do_not_enter_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: folder.parent)
    changed("recipe.yaml", ("saves/run", f"{folder}/saves/run"), ("# A recipe of mine.", f"# In {folder.parent}/x."))
    text = pack(capsys)
    assert yaml.safe_load(text)["output_dir"] == "saves/run"
    assert str(folder.parent) not in text
    changed("recipe.yaml", ("organisation/model", "/elsewhere/model"))
    assert main(["recipe", "pack", "recipe.yaml"]) == 1
    assert "`model_name_or_path: /elsewhere/model` is a place on this machine" in capsys.readouterr().err


def test_other_data_are_a_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(capsys)
    (folder / "sets" / "pairs.jsonl").write_text('{"query": "z", "positive": "b"}\n')
    (sentence,) = problems()
    assert sentence == "pairs is not as it was packed: its `file_name` differs."
    info = json.loads((folder / "sets" / "dataset_info.json").read_text())
    info["others"]["instruction"] = "Another one"
    (folder / "sets" / "dataset_info.json").write_text(json.dumps(info))
    assert "others is not as it was packed: its entry in dataset_info.json differs." in problems()


def test_other_versions_are_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    changed("packed.yaml", ("llamafactory: 0.9.5", "llamafactory: 0.9.4"), source=pack(capsys))
    assert problems() == []
    assert any("packed with llamafactory 0.9.4" in remark.sentence for remark in inspect_recipe("packed.yaml").remarks)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("output_dir: saves/run", "output_dir: ../elsewhere", "leads out by `..`"),
        ("output_dir: saves/run", "output_dir: /tmp/elsewhere", "is an absolute path"),
        ("output_dir: saves/run", "output_dir: ~/elsewhere", "is an absolute path"),
        ("output_dir: saves/run", "output_dir: link/run", "leads over a link"),
        ("#| packed:", "#| packed: [", "is damaged"),
    ],
)
def test_a_packed_recipe_of_anybody_stays_below_the_working_directory(
    old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to("/tmp")
    changed("packed.yaml", (old, new), source=pack(capsys))
    assert any(words in sentence for sentence in problems())


def test_the_revision_of_a_repository(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert f"revision: {head}\n" in pack(capsys)
    changed("recipe.yaml", ("lora_rank: 8", "lora_rank: 9"))
    assert f"revision: {head}-dirty\n" in pack(capsys)
