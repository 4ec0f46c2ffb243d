"""What a command imports: help texts nothing heavy, a check no more than it needs, with the same verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llamafactory_embed.cli import COMMANDS
from llamafactory_embed.host import light_imports
from llamafactory_embed.recipe import inspect_recipe
from tests.patience import PATIENCE


ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "mteb", "datasets", "llamafactory", "numpy", "sentence_transformers", "peft")
ACTIONS = ("list", "show", "new", "check", "diff", "pack", "convert")


def test_no_help_text_imports_anything_heavy() -> None:
    """One process for all of them: what one imports, the next one would not show."""
    words = [[name] for name in COMMANDS] + [["recipe", action] for action in ACTIONS]
    code = f"""
import contextlib, io, sys
from llamafactory_embed.cli import main
for words in {words!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*words, "--help"])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "[]\n", done.stderr


def test_a_reader_may_stop_early() -> None:
    """As in `recipe list | head`."""
    code = "import sys; from llamafactory_embed.cli import main; sys.exit(main(['recipe', 'list', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.process
def test_a_check_in_its_own_process_imports_less_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the console script runs it: `sys.argv` is the command."""
    monkeypatch.chdir(ROOT)
    recipes = ["quickstart/wordnet_lora", "quickstart/sorting_ddm-sft", "quickstart/tdro_s1", "quickstart/words"]
    paths = [f"examples/{name}.yaml" for name in recipes]
    bad = tmp_path / "bad.yaml"
    text = (ROOT / paths[0]).read_text("utf-8")
    bad.write_text(text.replace("lora_rank: 16", "lora_rnk: 16\ntemplate: nil\nuse_dora: 3\nquery_template: x"))
    code = f"""
import sys
from llamafactory_embed.cli import main
sys.argv = ["llamafactory-embed", "recipe", "check", *{[*paths, str(bad)]!r}]
code = main()
real = [name for name in ("peft", "datasets", "trl", "torch._dynamo", "llamafactory.data.loader")
        if getattr(sys.modules.get(name), "__file__", None)]
print(code, real)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    *lines, last = done.stdout.splitlines()
    assert last == "1 []", done.stderr
    expected = []
    for path in [*paths, str(bad)]:
        report = inspect_recipe(ROOT / path)
        found = sorted([*report.problems, *report.remarks], key=lambda each: each.line or 0)
        expected += [str(each).replace(f"{ROOT}/", "") for each in found]
        expected += [] if report.problems else [f"{path}: fine"]
    assert lines == expected
    assert len(lines) > len(paths)


def test_constants_are_those_of_the_packages() -> None:
    import peft.utils

    for name, value in light_imports.CONSTANTS.items():
        assert getattr(peft.utils, name.rpartition(".")[2]) == value


def test_a_stand_in_is_never_used_unnoticed() -> None:
    finder = light_imports.StandInFinder()
    spec = finder.find_spec("peft.tuners")
    assert spec is not None
    module = finder.create_module(spec)
    assert module.LoraModel is module.LoraModel
    assert isinstance(module.LoraModel | None, object)  # an annotation
    assert module.Mode.FAST.__name__ == "peft.tuners.Mode.FAST"
    for use in (lambda: module.LoraModel(), lambda: type("Own", (module.LoraModel,), {})):
        with pytest.raises(light_imports.StandInUsedError):
            use()
    with pytest.raises(light_imports.StandInUsedError):
        finder.find_spec("llamafactory.train.tuner")
    assert finder.find_spec("no_such_package") is None
    assert not issubclass(light_imports.StandInUsedError, Exception)


def test_stand_ins_are_for_fresh_processes_only() -> None:
    assert not light_imports.are_stand_ins_enough()  # this process has imported the host
