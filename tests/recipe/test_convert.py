"""Recipes converted from the originals' files have the effect of the originals: the expected values are those with
which our published examples are compared (`tests/published`)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from llamafactory_embed.cli import main
from llamafactory_embed.recipe import check_recipe
from llamafactory_embed.recipe.command import TOOL_NAMES
from llamafactory_embed.recipe.conversions import TOOLS, render_tool, render_trainer
from llamafactory_embed.recipe.conversions.table import names_in
from llamafactory_embed.recipe.conversions.training_arguments import TRAINING_ARGUMENTS
from llamafactory_embed.recipe.convert import convert_settings, find_tool
from llamafactory_embed.recipe.old_files import read_shell
from tests.published.expected import LOCAL_FOLDERS, TRANSLATORS
from tests.published.table import ROWS, Row
from tests.published.test_recipes import FACTS, comparable, effective_values, settings_of


TOOL_OF = {
    **dict.fromkeys(("llm2vec", "diffusion_embedder", "llm2vec_word_fork"), "llm2vec"),
    "tdro": "tdro",
    "diffullama": "diffullama",
}
CONVERTED = [row for row in ROWS if row.original.partition("/")[0] in TOOL_OF]


OF_ENGINES = names_in(
    """
    batch gradient learning max output seq nv bind compute_environment debug deepspeed_config distributed_type
    downcast_bf16 main_training_function same_network tpu_env tpu_use_cluster tpu_use_sudo fp16 gradient_clipping
    optimizer scheduler steps_per_print train_batch_size zero_optimization train_micro_batch_size_per_gpu
    wall_clock_breakdown
    """
)


def family_of(row: Row) -> str:
    return row.original.partition("/")[0]


def script(facts: Mapping[str, Mapping[str, str]]) -> str:
    """A shell script of the facts. What stands there behind a flag without a value are comments of the script; flags
    that such a comment says not to use, and GradCache's, are comments themselves."""
    plain = r"[\w./${}()\-:\"]+"
    lines = [f"{name}={value}" for name, value in facts["variables"].items() if re.fullmatch(plain, value)]
    lines.append("accelerate launch \\")
    for name, value in facts["flags"].items():
        if "Do NOT" not in value and name not in ("grad_cache", "no_sync_except_last"):
            has_value = not re.match(r"\s*[#\n]|\s\s", value)
            lines.append(f"  --{name} {value if has_value else ''} \\")
    return "\n".join(lines) + "\n  |& tee log\n"


def original_settings(row: Row) -> Mapping[str, Any]:
    """What the file says, with the names of what lay in folders of the authors' machines."""
    settings = settings_of(row)
    if family_of(row) == "tdro":
        return read_shell(script(settings))
    return {
        name: LOCAL_FOLDERS.get(value, value) if isinstance(value, str) else value for name, value in settings.items()
    }


@pytest.mark.parametrize("family", sorted(TOOL_OF))
def test_a_converted_file_has_the_effect_of_the_original(family: str) -> None:
    wrong = {}
    for row in CONVERTED:
        if family_of(row) != family:
            continue
        ours = effective_values(convert_settings(original_settings(row), TOOLS[TOOL_OF[family]]).options)
        for name, value in TRANSLATORS[row.kind](settings_of(row)).items():
            left, right = comparable(ours.get(name)), comparable(value)
            is_near = isinstance(value, float) and isinstance(left, (int, float)) and left == pytest.approx(value)
            if left != right and not is_near and name not in row.departures:
                wrong[f"{row.original}: {name}"] = (left, right)
    assert wrong == {}, "converted, and the original"


@pytest.mark.parametrize("family", sorted(TOOL_OF))
def test_the_table_is_complete_for_the_originals(family: str) -> None:
    recipes = [facts for path, facts in FACTS[family].items() if "weights" not in path and "mteb" not in path]
    used = {name for facts in recipes for name in facts.get("flags", facts)}
    # The facts' flags of DiffuLLaMA's program are cut at hyphens; files of engines and weights are no recipes.
    known = {flag.name for flag in TOOLS[TOOL_OF[family]].flags}
    others = {"diffullama": OF_ENGINES, "tdro": {"domain_ids", "size", "category_list"}}
    assert used - known - set(others.get(family, ())) == set()


def test_every_flag_of_the_trainer_has_a_row() -> None:
    known = {flag.name for flag in TRAINING_ARGUMENTS}
    assert {field.name for field in dataclasses.fields(TrainingArguments) if field.init} - known == set()


@pytest.mark.parametrize("key", TOOLS)
def test_what_a_table_names_are_options_of_recipes(key: str) -> None:
    from llamafactory.hparams import parser

    options = {field.name for kind in parser._TRAIN_ARGS for field in dataclasses.fields(kind)}
    for flag in TOOLS[key].flags:
        assert set(flag.ours) <= options, flag.name
        assert flag.ours or flag.says, f"{flag.name} has no reason"


def test_the_command_offers_every_tool() -> None:
    assert set(TOOL_NAMES) == set(TOOLS)


# A command line or file of each tool that has no facts here: what it says, and what must come of it.
COMMANDS = {
    "tevatron": (
        "deepspeed --include localhost:0 --module tevatron.retriever.driver.train \\\n"
        "  --model_name_or_path mistralai/Mistral-7B-v0.1 --lora --lora_r 32 \\\n"
        "  --dataset_name Tevatron/msmarco-passage-aug \\\n"
        "  --query_prefix 'Query: ' --passage_prefix 'Passage: ' --bf16 --pooling eos --append_eos_token \\\n"
        "  --normalize \\\n"
        "  --temperature 0.01 --per_device_train_batch_size 8 --gradient_checkpointing --train_group_size 16 \\\n"
        "  --learning_rate 1e-4 --query_max_len 32 --passage_max_len 156 --num_train_epochs 1 --grad_cache \\\n"
        "  --gc_p_chunk_size 4 --output_dir out --unheard_of 3\n",
        {"num_negatives": 15, "loss_temperature": 0.01, "query_template": "Query: {text}", "pooling": "eos",
         "similarity": "cosine", "lora_rank": 32, "lora_alpha": 64, "grad_cache_tokens": 624, "dataset":
         "msmarco-passage-aug", "finetuning_type": "lora", "cutoff_len": 156, "attention": "causal"},
        "# unheard_of: 3  no flag of Tevatron",
    ),
    "flagembedding": (
        "torchrun --nproc_per_node 2 -m FlagEmbedding.finetune.embedder.decoder_only.base \\\n"
        "  --model_name_or_path BAAI/bge-multilingual-gemma2 --use_lora True --lora_rank 32 --lora_alpha 64 \\\n"
        "  --train_data ./data/a.jsonl ./data/b.jsonl --train_group_size 8 --query_max_len 512 \\\n"
        "  --passage_max_len 512 --query_instruction_for_retrieval 'Given a query' \\\n"
        "  --query_instruction_format '<instruct>{}\\n<query>{}' \\\n"
        "  --knowledge_distillation False --same_dataset_within_batch True --temperature 0.02 \\\n"
        "  --sentence_pooling_method last_token --normalize_embeddings True --negatives_cross_device --fp16 \\\n"
        "  --learning_rate 1e-4 --num_train_epochs 1 --per_device_train_batch_size 2 --output_dir out\n",
        {"dataset": "a, b", "num_negatives": 7, "pooling": "last", "task_batching": "homogeneous",
         "cross_device_negatives": True, "query_template": "<instruct>{instruction}\n<query>{text}", "fp16": True},
        "# query_instruction_for_retrieval: Given a query  has no counterpart: the instruction",
    ),
    "ms-swift": (
        "INFONCE_MASK_FAKE_NEGATIVE=true INFONCE_TEMPERATURE=0.05 nproc_per_node=8 \\\n"
        "swift sft --model Qwen/Qwen3-Embedding-4B --task_type embedding --train_type lora \\\n"
        "  --dataset a/b:sub#1000 c.jsonl \\\n"
        "  --split_dataset_ratio 0.05 --loss_type infonce --label_names labels --learning_rate 6e-6 \\\n"
        "  --deepspeed zero3 \\\n"
        "  --max_length 512 --target_modules all-linear --padding_free true --output_dir out\n",
        {"dataset": "b[:1000], c", "loss_temperature": 0.05, "false_negative_margin": 0.1, "val_size": 0.05,
         "deepspeed": "examples/deepspeed/ds_z3_config.json", "lora_target": "all", "weight_decay": 0.1},
        "# padding_free: True  has no counterpart: texts are always packed",
    ),
    "sentence-transformers": (
        json.dumps({"output_dir": "out", "per_device_train_batch_size": 16, "warmup_ratio": 0.1, "prompts": {"anchor":
                    "query: "}, "batch_sampler": "no_duplicates", "multi_dataset_batch_sampler": "round_robin",
                    "hub_token": "hf_abcdefghijklmnopqrstuvwxyz"}),
        {"per_device_train_batch_size": 16, "warmup_steps": 0.1, "query_template": "query: {text}", "dataset_weights":
         "uniform"},
        "# batch_sampler: no_duplicates  has no counterpart: equal texts",
    ),
    "diffullama": (
        "accelerate launch --config_file zero3.yaml train.py --batch-size 60 --gradient-accumulate-every 4 \\\n"
        "  --output-dir ./output --seed 2829 --max-train-steps 20000 --learning-rate 1.5e-5 \\\n"
        "  --model meta-llama/Llama-2-7b-hf --dataset slim --seq-length 2048 \\\n"
        "  --parallel_mode data_parallel --wandb Diffusion\n",
        {"stage": "ddm", "per_device_train_batch_size": 60, "gradient_accumulation_steps": 4, "cutoff_len": 2048,
         "max_steps": 20000, "learning_rate": 1.5e-5, "shift": True},
        "# parallel_mode: data_parallel  has no counterpart: data parallel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", COMMANDS)
def test_a_command_becomes_a_recipe_that_says_what_was_lost(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected, comment = COMMANDS[key]
    old = tmp_path / ("old.json" if text.startswith("{") else "train.sh")
    old.write_text(text)
    assert main(["recipe", "convert", str(old), "-o", str(tmp_path / "recipe.yaml")]) == 0
    written = (tmp_path / "recipe.yaml").read_text("utf-8")
    options = yaml.safe_load(written)
    assert {name: options.get(name) for name in expected} == expected
    assert comment in written
    assert "hf_abc" not in written

    names = [name.partition("[")[0] for name in options["dataset"].split(", ")]
    (tmp_path / "data").mkdir()
    entry = {"hf_hub_url": "a/b"} | ({} if key == "diffullama" else {"formatting": "retrieval"})
    entries = {name: entry for name in names}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(entries))
    (tmp_path / "examples").symlink_to(Path(__file__).parents[2] / "examples")
    monkeypatch.chdir(tmp_path)
    assert [str(problem) for problem in check_recipe("recipe.yaml")] == []


def test_every_flag_is_in_the_recipe(tmp_path: Path) -> None:
    """As a line of its own name, or in a comment at its place."""
    row = next(row for row in CONVERTED if row.original.endswith("supervised/Dream_if.json"))
    old, new = tmp_path / "Dream_if.json", tmp_path / "recipe.yaml"
    old.write_text(json.dumps(settings_of(row)))
    assert main(["recipe", "convert", str(old), "-o", str(new)]) == 0
    own_part = new.read_text("utf-8").split("### Dream_if.json")[1]
    places = [re.search(rf"^(# )?{name}:", own_part, re.MULTILINE) for name in settings_of(row)]
    assert all(places)
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)


def test_a_file_of_nobody_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "a.json"
    for text, said in (("[1]", "holds no settings"), ("{", "is not what its name says"), ('{"zzz": 1}', "--from")):
        old.write_text(text)
        assert main(["recipe", "convert", str(old)]) == 1
        assert said in capsys.readouterr().err


def test_the_tool_is_found_by_its_own_flags() -> None:
    assert find_tool({"model_name_or_path": "a", "q_max_len": 3, "dro_type": "x"}, Path("a")).key == "tdro"
    assert find_tool({"learning_rate": 1, "batch_sampler": "x"}, Path("a")).key == "sentence-transformers"
    assert find_tool({"learning_rate": 1}, Path("a")).key == "sentence-transformers"


def test_the_tool_of_every_original_is_found() -> None:
    for row in CONVERTED:
        assert find_tool(original_settings(row), Path(row.original)).key == TOOL_OF[family_of(row)], row.original


def test_shell_scripts() -> None:
    text = """
    # ARGS+=" --commented 1 "
    N=4; BATCH=$((2048/N/2)) ; ARGS=" --a $BATCH "   # a comment
    ARGS+=" --b ${M:-7} --c "
    export TEMPERATURE=0.5
    run -m module $ARGS --d "two words" --e=-1 --f 1 2 --g-h x |& tee log --not 1
    """
    # A `;` behind an assignment is the shell's; one line sets one variable here.
    settings = read_shell(text.replace("N=4; ", "N=4\n").replace(" ; ARGS", "\n    ARGS"))
    assert settings["a"] == 256
    assert settings["b"] == 7
    assert settings["c"] is True
    assert settings["d"] == "two words"
    assert (settings["e"], settings["f"], settings["g_h"], settings["TEMPERATURE"]) == (-1, [1, 2], "x", 0.5)
    assert "commented" not in settings


@pytest.mark.parametrize("key", TOOLS)
def test_the_tables_as_markdown(key: str) -> None:
    lines = render_tool(TOOLS[key]).splitlines()
    own = {flag.name for flag in TOOLS[key].flags} - {flag.name for flag in TRAINING_ARGUMENTS}
    assert all(any(line.startswith(f"| `{name}` |") for line in lines) for name in own)
    assert {line.count("|") - line.count("\\|") for line in lines} == {4}
    assert "`evaluation_strategy` | `eval_strategy`" in render_trainer()
