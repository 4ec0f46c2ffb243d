"""`llamafactory-embed recipe check`: what it says, where it points, that it agrees with the host."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from llamafactory.hparams import finetuning_args
from llamafactory.hparams import parser as host
from omegaconf import OmegaConf

from llamafactory_embed.cli import main
from llamafactory_embed.host import options
from llamafactory_embed.hparams import option
from llamafactory_embed.recipe import check_recipe, inspect_recipe, machine
from llamafactory_embed.stages import registry
from llamafactory_embed.stages.stage import Stage


GOOD = """\
### model
model_name_or_path: organisation/model

### method
stage: pt
do_train: true
finetuning_type: lora
lora_target: [q_proj, v_proj]

### dataset
dataset_dir: sets
dataset: animals, from_hub

### output
output_dir: saves/run
plot_loss: true

### train
learning_rate: 1e-4
lr_scheduler_type: cosine
max_steps: 3
eval_strategy: "no"
"""

Check = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data sets."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_info.json").write_text(
        '{"animals": {"file_name": "animals.jsonl"}, "from_hub": {"hf_hub_url": "organisation/texts"},'
        ' "lost": {"file_name": "lost.jsonl"}, "aimless": {}, "talks": {"file_name": "animals.jsonl",'
        ' "formatting": "sharegpt"}, "by_id": {"file_name": "animals.jsonl",'
        ' "corpus": {"file_name": "lost.jsonl"}, "queries": "animals.jsonl"},'
        ' "odd": {"file_name": "animals.jsonl", "formatting": "sharegtp"}}'
    )
    (tmp_path / "sets" / "animals.jsonl").write_text("this is not JSON, and nobody reads it")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(folder: Path) -> Check:
    """Check the good recipe with lines replaced or added; the problems as `line: sentence`."""

    def check_changed(*lines: str, base: str = GOOD) -> list[str]:
        Path("recipe.yaml").write_text(change(base, *lines))
        return [str(problem).removeprefix("recipe.yaml:") for problem in check_recipe("recipe.yaml")]

    return check_changed


def change(recipe: str, *lines: str) -> str:
    """Replace the lines that set the same options, append the others."""
    kept = recipe.splitlines()
    for line in lines:
        option_name = line.partition(":")[0]
        places = [index for index, old in enumerate(kept) if old.partition(":")[0] == option_name]
        place = places[0] if places else len(kept)
        kept[place : place + 1] = [line]
    return "\n".join(kept) + "\n"


def line_of(option_name: str, *lines: str) -> int:
    """Where an option stands in the changed recipe, counted independently of the code under test."""
    text = change(GOOD, *lines).splitlines()
    return next(index for index, line in enumerate(text, 1) if line.startswith(f"{option_name}:"))


def test_a_good_recipe_is_fine(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == []
    assert main(["recipe", "check", "recipe.yaml"]) == 0
    assert capsys.readouterr().out == "recipe.yaml: fine\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lora_rnk: 4", "unknown option `lora_rnk`; did you mean `lora_rank`?"),
        ("zzzz: 4", "unknown option `zzzz`."),
        ("use_ray: true", "`use_ray` is not an option: set the environment variable USE_RAY=1 instead."),
        ("stage: ptt", "`stage` must be one of pt, sft, rm, ppo, dpo, kto, *not 'ptt'; did you mean `pt`?"),
        ("finetuning_type: lorra", "`finetuning_type` must be one of lora, oft, freeze, full, not 'lorra'; did you*"),
        ("flash_attn: fa22", "`flash_attn` must be one of auto, disabled, sdpa, fa2, fa3, not 'fa22'; did you*"),
        ("lr_scheduler_type: cosin", "`lr_scheduler_type` must be one of linear, cosine, *; did you mean `cosine`?"),
        ("eval_strategy: no", "`eval_strategy` must be *, not False: YAML reads no as false, put it in quotes."),
        ("lora_rank: eight", "`lora_rank` must be a whole number, not 'eight'."),
        ("lora_rank: 8.5", "`lora_rank` must be a whole number, not 8.5."),
        ("lora_rank: true", "`lora_rank` must be a whole number, not True."),
        ("max_steps: 1e3", "`max_steps` must be a whole number, not 1000.0: write 1000."),
        ("learning_rate: '1e-4'", "`learning_rate` must be a number, not '1e-4': take the quotes off."),
        ("do_train: 'yes'", "`do_train` must be true or false, not 'yes'."),
        ("run_name: 2024", "`run_name` must be text, not 2024: put it in quotes."),
        ("lora_dropout:", "`lora_dropout` needs a value, or must be left out."),
        ("lora_target: {q_proj: 1}", "`lora_target` must be text, not {'q_proj': 1}."),
        ("template: llama33", "unknown `template: llama33`; did you mean `llama3`?"),
        (
            "dataset: animal",
            "`dataset` names animal, which sets/dataset_info.json does not have; did you mean `animals`?",
        ),
        ("dataset: by_id", "sets/lost.jsonl, the `corpus` of by_id in sets/dataset_info.json, does not exist."),
        ("dataset: lost", "sets/lost.jsonl, the `file_name` of lost in sets/dataset_info.json, does not exist."),
        (
            "dataset: aimless",
            "the entry aimless of sets/dataset_info.json does not say where its rows are: it needs *",
        ),
        (
            "dataset: odd",
            "`formatting: sharegtp` of odd in * reads alpaca, sharegpt, openai; did you mean `sharegpt`?",
        ),
        ("eval_dataset: animals, plants", "`eval_dataset` names plants, which sets/dataset_info.json does not have."),
        ("dataset_dir: nowhere", "nowhere/dataset_info.json does not exist: `dataset_dir` must name the folder*"),
        ("deepspeed: ds.json", "`deepspeed`: there is no file ds.json."),
        ("fsdp_config: sets/animals.jsonl", "`fsdp_config`: sets/animals.jsonl is not valid JSON: *"),
        ("use_dora: true\nfinetuning_type: full", "`use_dora` is only valid for LoRA training."),
        ("neat_packing: true", "`neat_packing` cannot be set as True except SFT."),
        ("val_size: 0.1\neval_dataset: animals", "Cannot specify `val_size` if `eval_dataset` is not None."),
        ("load_best_model_at_end: true\nsave_strategy: epoch", "--load_best_model_at_end requires *"),
        ("fp16: true\nbf16: true", "At most one of fp16 and bf16 can be True, but not both"),
    ],
)
def test_a_problem_is_named_with_its_line(check: Check, line: str, sentence: str) -> None:
    lines = line.splitlines()
    (problem,) = check(*lines)
    number = line_of(lines[0].partition(":")[0], *lines)
    assert re.fullmatch(f"{number}: " + re.escape(sentence).replace(r"\*", ".*"), problem)


def test_all_problems_of_a_recipe_are_listed(check: Check) -> None:
    lines = ["stage: dpo", "lora_rnk: 4", "learning_rate: fast", "dataset: animal, lost", "pref_loss: hing"]
    lines += ["neat_packing: true", "use_dora: true", "use_galore: maybe", "streaming: true", "max_samples: 3"]
    problems = check(*lines)
    numbers = [int(problem.partition(":")[0]) for problem in problems]
    assert numbers == sorted(numbers)
    expected = ("lora_rnk", "learning_rate", "pref_loss", "neat_packing", "use_galore", "max_samples")
    assert set(numbers) == {line_of(name, *lines) for name in (*expected, "dataset")}
    assert len(problems) == len(expected) + 2  # two of the data sets


def test_a_slip_brings_no_complaints_in_its_train(check: Check) -> None:
    """A misspelt option or value counts as what was meant."""
    assert (
        len(check("eval_strategy: stepss", "save_strategy: steps", "load_best_model_at_end: true", "val_size: 0.1"))
        == 1
    )
    recipe = GOOD.replace("dataset:", "datset:")
    assert len(check(base=recipe)) == 1
    assert "did you mean `dataset`" in check(base=recipe)[0]
    assert check(base=recipe.replace("animals,", "animal,"))[1].startswith(
        check(base=recipe)[0].partition(":")[0] + ": "
    )


def test_an_option_that_is_set_twice(check: Check) -> None:
    first, text = line_of("max_steps"), GOOD + "max_steps: few\n"
    second = len(text.splitlines())
    assert check(base=text) == [
        f"{second}: `max_steps` is set twice, in line {first} and here.",
        f"{second}: `max_steps` must be a whole number, not 'few'.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2\n", "2: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'."),
        ("model_name_or_path: a\n\tstage: pt\n", "2: not valid YAML: *"),
        ("- a\n", " a recipe must hold lines of the form `option: value`."),
        ("", " a recipe must hold lines of the form `option: value`."),
        ("stage: pt\n", " `model_name_or_path` is missing."),
    ],
)
def test_what_is_no_recipe(check: Check, text: str, problem: str) -> None:
    (found,) = check(base=text)
    assert found.startswith(problem.partition("*")[0])


def test_files_that_the_host_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.json").write_text("{}")
    assert main(["recipe", "check", "recipe.json", "nowhere.yaml"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("recipe.json: LLaMA-Factory reads recipes from files that end in .yaml")
    assert printed[1] == "nowhere.yaml: there is no such file."


def test_several_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text(GOOD)
    Path("bad.yaml").write_text(change(GOOD, "seed: x"))
    assert main(["recipe", "check", "good.yaml", "bad.yaml"]) == 1
    line = line_of("seed", "seed: x")
    assert capsys.readouterr().out == f"good.yaml: fine\nbad.yaml:{line}: `seed` must be a whole number, not 'x'.\n"


def test_a_recipe_for_chat_or_export_is_read_as_one(check: Check) -> None:
    recipe = "model_name_or_path: a/b\ntemplate: llama3\ninfer_backend: huggingface\ntop_p: 0.5\n"
    assert check(base=recipe) == []
    assert check("export_dir: out", base=recipe) == []
    assert check("export_dir: out", "learning_rate: 0.1", base=recipe)[0].startswith(
        "6: unknown option `learning_rate`"
    )
    assert check("adapter_name_or_path: x", "finetuning_type: full", base=recipe) == [
        " Adapter is only valid for the LoRA method."
    ]


# What the host itself accepts and refuses; read by its own reader and run through its own entry.
BOTH_ACCEPT = [
    ("warmup_steps: 0.1",),
    ("learning_rate: 5e5",),
    ("lora_target: q_proj,v_proj", "lora_alpha:"),
    ("report_to: [tensorboard]",),
    ("dataset: [animals, talks]", "interleave_probs: [0.5, 0.5]", "mix_strategy: interleave_under"),
    ("gradient_checkpointing_kwargs: {use_reentrant: false}",),
    ("bf16: true", "use_cpu: true"),
    ("stage: sft", "do_predict: true", "predict_with_generate: true", "eval_dataset: animals"),
]
BOTH_REFUSE = [
    ("lora_rnk: 4",),
    ("eval_strategy: no",),
    ("eval_strategy: sometimes",),
    ("save_steps: many",),
    ("streaming: true", "max_steps: -1"),
    ("stage: rm", "load_best_model_at_end: true"),
    ("stage: ppo",),
    ("adapter_name_or_path: [a, b]",),
    ("quantization_bit: 4", "finetuning_type: full"),
    ("do_eval: true",),
    ("seed: 1\nseed: 2",),
    ("gradient_checkpointing_kwargs: '{broken'",),
]


def host_accepts(recipe: str) -> bool:
    Path("recipe.yaml").write_text(recipe)
    try:
        host.get_train_args(OmegaConf.to_container(OmegaConf.load("recipe.yaml")))
    except Exception:
        return False
    return True


@pytest.mark.parametrize("lines", BOTH_ACCEPT + BOTH_REFUSE, ids=" + ".join)
def test_the_verdict_is_the_hosts(check: Check, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...]) -> None:
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")
    monkeypatch.setattr(host, "_check_extra_dependencies", lambda *args: None)  # about the machine, not the recipe
    accepted = check(*lines) == []
    assert accepted == host_accepts(change(GOOD, *lines))
    assert accepted == (lines in BOTH_ACCEPT)


def test_what_depends_on_the_machine_is_a_remark(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr("llamafactory_embed.recipe.machine.is_installed", lambda package: False)
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    lines = ["bf16: true", "deepspeed: ds.json", "enable_liger_kernel: true", "model_name_or_path: ./not/there"]
    Path("recipe.yaml").write_text(change(GOOD, *lines))
    Path("saves/run").mkdir(parents=True)
    Path("saves/run/adapter_model.safetensors").touch()
    report = inspect_recipe("recipe.yaml")
    assert report.problems == []
    remarks = [str(remark) for remark in report.remarks]
    assert all(": here: " in remark for remark in remarks)
    for words in ("`bf16: true`", "needs deepspeed", "liger-kernel is needed", "./not/there", "overwrite_output_dir"):
        assert any(words in remark for remark in remarks), words


def test_a_processor_without_bf16_and_a_machine_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    lines = ["use_cpu: true", "bf16: true", "torch_compile: true"]
    Path("recipe.yaml").write_text(change(GOOD, *lines))
    for has_bf16, missing, count in ((False, "a compiler", 2), (True, None, 0), (None, None, 0)):
        monkeypatch.setattr(machine, "has_bf16", lambda has_bf16=has_bf16: has_bf16)
        monkeypatch.setattr(machine, "missing_for_compilation", lambda *_, missing=missing: missing)
        remarks = [str(remark) for remark in inspect_recipe("recipe.yaml").remarks]
        assert sum("bfloat16" in each or "needs a compiler" in each for each in remarks) == count


def test_deepspeed_counts_in_the_hosts_checks(check: Check, folder: Path) -> None:
    """Its file is read, though DeepSpeed is not started: ZeRO-3 excludes PiSSA."""
    for stage, count in ((2, 0), (3, 1)):
        (folder / "ds.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
        assert len(check("deepspeed: ds.json", "pissa_init: true")) == count


def test_a_check_leaves_no_trace(check: Check, folder: Path) -> None:
    check()
    before = dict(os.environ), sorted(folder.rglob("*")), torch.get_rng_state(), random.getstate()
    check("seed: 7", "use_kt: true", "torch_compile: true")
    assert not torch.distributed.is_initialized()
    assert (dict(os.environ), sorted(folder.rglob("*"))) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]


# ------------------------------------------------------------------------------------------------------------------
# Stages of plugins
# ------------------------------------------------------------------------------------------------------------------


@dataclass
class WarmOptions:
    warmth: float = option(0.5, "How warm.", minimum=0.0, maximum=1.0)
    color: Literal["red", "orange"] = option("red", "Which colour.")


@dataclass
class ColdOptions:
    frost: int = option(0, "How cold.")
    color: Literal["red", "orange"] = option("red", "Which colour.")


@pytest.fixture
def plugin_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages in the host's real parser, and one that could not be loaded."""
    stages = registry.Registry()
    for name, declared, formats in (("warm", WarmOptions, ("pairs",)), ("cold", ColdOptions, ())):
        stages.add(Stage(name=name, options=declared, run="a:b", label=name, formats=formats), owner="somebody")
    stages.reject("broken", "Stage 'broken' could not be loaded.")

    stock = finetuning_args.FinetuningArguments
    for name in options.ARGUMENT_LISTS:
        classes = [stock if issubclass(each, stock) else each for each in getattr(host, name)]
        monkeypatch.setattr(host, name, classes)
    monkeypatch.setattr(host, "FinetuningArguments", stock)
    for module in (registry, options):
        monkeypatch.setattr(module, "load_registry", lambda: stages)
    options.apply(host)


@pytest.mark.usefixtures("plugin_stages")
def test_the_options_of_a_plugin_stage(check: Check) -> None:
    assert check("stage: warm", "warmth: 1", "color: orange") == []
    lines = ["stage: warm", "warmth: 1.5", "color: orang", "warmt: 1"]
    assert check(*lines) == [
        f"{line_of('warmth', *lines)}: `warmth` must be between 0.0 and 1.0, not 1.5.",
        f"{line_of('color', *lines)}: `color` must be one of red, orange, not 'orang'; did you mean `orange`?",
        f"{line_of('warmt', *lines)}: unknown option `warmt`; did you mean `warmth`?",
    ]


@pytest.mark.usefixtures("plugin_stages")
def test_options_of_another_stage(check: Check) -> None:
    lines = ["stage: cold", "warmth: 0.7", "color: orange"]
    assert check(*lines) == [
        f"{line_of('warmth', *lines)}: `warmth` is an option of `stage: warm`, not of `stage: cold`."
    ]
    lines = ["stage: pt", "warmth: 0.7", "frost: 3"]
    assert len(check(*lines)) == 2


@pytest.mark.usefixtures("plugin_stages")
def test_a_wrong_stage_is_the_only_complaint(check: Check) -> None:
    (problem,) = check("stage: warmm", "warmth: 0.7", "neat_packing: true")
    assert problem.endswith("not 'warmm'; did you mean `warm`?")
    (problem,) = check("stage: broken", "warmth: 0.7")
    assert problem == f"{line_of('stage')}: Stage 'broken' could not be loaded."


@pytest.mark.usefixtures("plugin_stages")
def test_a_stage_reads_its_own_formats(check: Check, folder: Path) -> None:
    assert check("stage: cold", "dataset: talks") == []
    (problem,) = check("stage: warm", "dataset: talks")
    assert problem.endswith("is not for this stage, which reads pairs.")


def test_a_stage_of_ours_while_the_plugin_is_off(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = registry.Registry()
    stages.add(Stage(name="warm", options=WarmOptions, run="a:b", label="Warm"), owner="somebody")
    monkeypatch.setattr(registry, "load_registry", lambda: stages)
    (problem,) = check("stage: warm")
    assert "needs the plugin, which is off here" in problem


def test_the_first_rows_of_a_data_set_are_known_by_its_name(check: Check) -> None:
    retrieval = ("stage: contrastive", "dataset: vectors[:3], vectors")
    registry = Path("sets/dataset_info.json")
    entries = json.loads(registry.read_text())
    registry.write_text(json.dumps(entries | {"vectors": {"file_name": "animals.jsonl", "formatting": "retrieval"}}))
    assert check(*retrieval) == []
    (problem,) = check("stage: contrastive", "dataset: vector[:3]")
    assert "`dataset` names vector, which" in problem
    lines = ("stage: contrastive", "dataset: vectors[:0]", "pooling: men")
    assert len(check(*lines)) == 2, "a bad number of rows does not hide other problems"
    assert any(
        f"{line_of('dataset', *lines)}: `dataset`: `vectors[:0]` takes no rows" in each for each in check(*lines)
    )


def test_objectives_are_checked_with_the_data_sets_that_they_are_about(check: Check, folder: Path) -> None:
    registry = folder / "sets" / "dataset_info.json"
    pairs = {"file_name": "animals.jsonl", "formatting": "retrieval", "task": "sts", "objective": {"loss": "cosent"}}
    registry.write_text(
        json.dumps({"pairs": pairs, "rows": {"file_name": "animals.jsonl", "formatting": "retrieval"}})
    )
    retrieval = ("stage: contrastive", "dataset: pairs, rows")
    assert check(*retrieval, "objectives: {sts: {weight: 2}, rows: {num_negatives: 0}}") == []
    (unknown,) = check(*retrieval, "objectives: {row: {num_negatives: 0}}")
    assert "`objectives` names row, which is no task of `dataset`; did you mean `rows`?" in unknown
    (misspelt,) = check(*retrieval, "objectives: {sts: {wieght: 2}}")
    assert "`objectives`: sts: `wieght` is not a setting of an objective; did you mean `weight`?" in misspelt
    (no_effect,) = check(*retrieval, "objectives: {rows: {loss: repllama, num_negatives: 0}}")
    assert "`objectives`: rows: `contrastive_loss: repllama` compares" in no_effect
    registry.write_text(json.dumps({"pairs": pairs | {"objective": {"loss": "cosnet"}}}))
    (wrong,) = check("stage: contrastive", "dataset: pairs")
    assert "Data set `pairs`: `objective`: `loss` must be one of" in wrong
    assert "did you mean `cosent`?" in wrong
