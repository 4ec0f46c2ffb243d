"""`recipe new`: what it writes fits the memory by an estimate that agrees with what torch allocates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from benchmarks import step_memory
from benchmarks.inputs import ModelSize
from llamafactory_embed.cli import main
from llamafactory_embed.recipe import check_recipe
from llamafactory_embed.recipe.memory import GIB, ModelShape, estimate_step, fits_into
from llamafactory_embed.recipe.new import NewRecipeOptions, parse_memory, with_answers
from llamafactory_embed.recipe.planning import Wish, candidates, plan_run
from llamafactory_embed.recipe.shapes import shape_of_configuration
from tests.tiny_models import tiny_model


TOLERANCE = 0.25
# Mistral-7B's and Qwen3-0.6B's configurations.
SEVEN_BILLION = ModelShape(4096, 32, 14336, 32, 8, 128, 32000)
SMALL = ModelShape(1024, 28, 3072, 16, 8, 128, 151936, tied=True)


# --------------------------------------------------- the estimate ---------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_of_a_shape_are_counted(family: str, tied: bool) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    shape = shape_of_configuration(model.config.to_dict())
    counted = sum(parameter.numel() for name, parameter in model.named_parameters() if "bias" not in name)
    counted -= sum(p.numel() for name, p in model.named_parameters() if "q_norm" in name or "k_norm" in name)
    assert shape.weights == counted


def test_the_adapters_of_a_shape_are_counted() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    shape = shape_of_configuration(model.config.to_dict())
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert shape.adapter_weights(3) == trained


def test_configurations_of_other_families() -> None:
    gpt2 = shape_of_configuration(AutoConfig.for_model("gpt2").to_dict())
    assert (gpt2.hidden, gpt2.layers, gpt2.heads, gpt2.intermediate) == (768, 12, 12, 3072)
    with pytest.raises(ValueError, match="it has no `num_hidden_layers`"):
        shape_of_configuration({"hidden_size": 4, "num_attention_heads": 2})


def test_the_estimate_agrees_with_the_recorded_peaks() -> None:
    """Of a model of 6 layers and of SmolLM2-135M's shape (`benchmarks/step_memory.py`)."""
    rows = json.loads(step_memory.RESULTS.read_text("utf-8"))["runs"]
    assert {row["model"] for row in rows} == set(step_memory.MODELS)
    for row in rows:
        estimate = step_memory.estimate_of(row)
        assert estimate.kept == pytest.approx(row["kept"], rel=0.01), row
        assert estimate.step_peak == pytest.approx(row["step"], rel=TOLERANCE), row
        assert estimate.total == pytest.approx(row["kept"] + row["step"], rel=TOLERANCE), row


@pytest.mark.usefixtures("single_process")
def test_the_estimate_agrees_with_a_step(tmp_path: Path) -> None:
    size, rows = ModelSize(4, 128, 352, 4, 2, vocabulary=2048), 16
    material = step_memory.make_material(tmp_path, size, rows)
    for case in ("contrastive, full, checkpointing", "contrastive, LoRA"):
        measured = step_memory.run_case(material, step_memory.CASES[case], rows)
        estimate = step_memory.estimate_case(size, case, rows)
        assert estimate.kept == pytest.approx(measured["kept"], rel=0.01), case
        assert estimate.step_peak == pytest.approx(measured["step"], rel=TOLERANCE), case


def test_what_changes_the_estimate() -> None:
    """Each setting against a closed form."""
    wish = Wish("contrastive", "full", 64, 512, 80 * GIB, 4)
    settings, _ = next(iter(candidates(SMALL, wish)))
    plain = estimate_step(SMALL, settings)
    count = SMALL.weights
    assert (plain.weights, plain.optimizer, plain.gradients) == (6 * count, 8 * count, 4 * count)
    zero2 = estimate_step(SMALL, dataclasses.replace(settings, zero_stage=2))
    assert (zero2.weights, zero2.optimizer, zero2.gradients) == (2 * count, 12 * count / 4, 2 * count / 4)
    zero3 = estimate_step(SMALL, dataclasses.replace(settings, zero_stage=3))
    assert zero3.weights == 2 * count / 4

    adapter = SEVEN_BILLION.adapter_weights(16)
    lora = estimate_step(SEVEN_BILLION, dataclasses.replace(settings, method="lora"))
    assert (lora.optimizer, lora.gradients) == (8 * adapter, 4 * adapter)
    assert lora.weights == 2 * (SEVEN_BILLION.weights - SEVEN_BILLION.embedding_weights) + 4 * adapter
    qlora = estimate_step(SEVEN_BILLION, dataclasses.replace(settings, method="qlora"))
    assert 0.25 < qlora.weights / lora.weights < 0.35

    recomputed = estimate_step(SMALL, dataclasses.replace(settings, checkpointing=True))
    assert recomputed.activations < plain.activations / 3
    twice = estimate_step(SMALL, dataclasses.replace(settings, tokens=2 * settings.tokens))
    assert twice.activations == 2 * plain.activations
    cached = dataclasses.replace(settings, grad_cache=True, tokens_of_forward=2048)
    assert estimate_step(SMALL, cached).activations == pytest.approx(plain.activations * 2048 / settings.tokens)
    assert estimate_step(SMALL, dataclasses.replace(cached, tokens=9 * settings.tokens)) == estimate_step(
        SMALL, cached
    )


# ------------------------------------------------------- plans ------------------------------------------------------


@pytest.mark.parametrize("stage", ["contrastive", "mntp", "ddm-sft"])
@pytest.mark.parametrize("shape", [SMALL, SEVEN_BILLION], ids=["0.6B", "7B"])
@pytest.mark.parametrize("gpus", [1, 8])
def test_a_plan_fits_and_more_memory_never_gives_less(stage: str, shape: ModelShape, gpus: int) -> None:
    order = [plan for _, plan in candidates(shape, Wish(stage, "auto", 64, 512, GIB, gpus))]
    places = []
    for memory in (16, 24, 48, 80, 141):
        wish = Wish(stage, "auto", 64, 512, memory * GIB, gpus)
        plan = plan_run(shape, wish)
        settings = next(settings for settings, each in candidates(shape, wish) if each == plan)
        assert fits_into(shape, settings, wish.memory)
        assert plan.rows * plan.accumulation == 64
        places.append(order.index(plan))
    assert places == sorted(places, reverse=True)


def test_too_little_memory_is_said() -> None:
    with pytest.raises(ValueError, match=r"`--memory 4GB` is too little: a step of this model takes \d"):
        plan_run(SEVEN_BILLION, Wish("contrastive", "auto", 64, 512, 4 * GIB, 1))


# ----------------------------------------------------- the command ---------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model's configuration and two data sets."""
    config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
              "tie_word_embeddings": False}  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "data").mkdir()
    entries = {"pairs": {"file_name": "x.jsonl", "formatting": "retrieval"}, "texts": {"file_name": "x.jsonl"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(entries))
    (tmp_path / "data" / "x.jsonl").touch()
    (tmp_path / "examples").symlink_to(Path(__file__).parents[2] / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("stage", "words", "expected"),
    [
        ("contrastive", "--memory 24GB", {"finetuning_type": "lora", "per_device_train_batch_size": 64}),
        ("contrastive", "--memory 10GB --length 256", {"quantization_bit": 4, "bf16": True}),
        ("contrastive", "--memory 80GB --gpus 8 --method full", {"deepspeed": "examples/deepspeed/ds_z2_config.json"}),
        ("mntp", "--memory 24GB", {"mask_token": "blank", "finetuning_type": "lora"}),
        ("ddm", "--memory 64GB --gpus 0 --method lora --rows 8", {"use_cpu": True, "bf16": None}),
        ("ddm-sft", "--memory 24GB --output-dir here", {"template": "default", "output_dir": "here"}),
    ],
)
def test_what_it_writes_passes_the_check(
    stage: str, words: str, expected: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "pairs" if stage == "contrastive" else "texts"
    given = ["recipe", "new", "--stage", stage, "--model", "model", "--data", data, *words.split(), "-o", "new.yaml"]
    assert main(given) == 0
    text = Path("new.yaml").read_text("utf-8")
    options = yaml.safe_load(text)
    assert {name: options.get(name) for name in expected} == expected
    assert "Estimated peak: " in text
    assert [str(problem) for problem in check_recipe("new.yaml")] == []


def test_nothing_is_asked_without_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "new", "--model", "model"]) == 1
    assert "`--stage`, `--data`, `--memory`: give a value" in capsys.readouterr().err


def test_questions_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    asked = []

    def answer(question: str) -> str:
        asked.append(question)
        return {"Stage": "mntp", "Model": " m ", "Data": "d", "Memor": "24GB"}[question[:5].strip()]

    options = with_answers(NewRecipeOptions(model=""), answer)
    assert (options.stage, options.model, options.data, options.memory) == ("mntp", "m", "d", "24GB")
    assert len(asked) == 4
    assert with_answers(options, answer) == options
    assert len(asked) == 4  # what is given is not asked for


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * GIB), ("24 gib", 24 * GIB), ("24", 24 * GIB), ("512MB", GIB / 2)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--memory lots --model model --stage mntp", "must be a size such as 24GB"),
        ("--memory 24GB --model nowhere/at-all --stage mntp", "has no config.json that can be read here"),
    ],
)
def test_mistakes_are_said(words: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "new", "--data", "texts", *words.split()]) == 1
    assert said in capsys.readouterr().err
