"""`stage: word-task` from recipe to predictions, with decoders and encoders, on a tiny scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.train.tuner import run_exp
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2Model, ModernBertConfig, ModernBertModel

from llamafactory_embed.hparams.word_task import WordTaskOptions
from tests.docs.option_pages import declared_options, explained_options
from tests.tiny_models import VOCABULARY_SIZE, save_tiny_model, tiny_tokenizer


ROOT = Path(__file__).parents[4]
LORA = {
    "finetuning_type": "lora",
    "train_backbone": "lora",
    "lora_rank": 4,
    "lora_target": "all",
    "learning_rate": 2e-2,
}
FULL = {"finetuning_type": "full", "train_backbone": "full"}
SIZES = {"vocab_size": VOCABULARY_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "pad_token_id": 2}  # fmt: skip
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "deberta-v2": lambda: DebertaV2Model(
        DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8)
    ),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES, cls_token_id=0, sep_token_id=1)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "llama", "llama")
    save_tiny_model(folder / "mistral", "mistral")
    for name, make in ENCODERS.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def recipe(model: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "word-task",
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "dataset": "words_sample",
        "eval_dataset": "words_sample_heldout",
        "dataset_dir": str(ROOT / "data"),
        "max_samples": 60,
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text("utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def metrics(output: Path) -> dict[str, float]:
    return json.loads((output / "eval_results.json").read_text("utf-8"))


CASES: dict[str, dict[str, Any]] = {
    "llama-frozen": {},
    "llama-causal-next-token": {"attention": "causal", "retroactive_labels": "next_token", "merge_subwords": True},
    "llama-lora": LORA,
    "mistral-full": FULL | {"merge_subwords": True, "sliding_window": "ignore"},
    "bert-frozen": {},
    "deberta-v2-full": FULL,
    "deberta-v2-lora": LORA,
    "modernbert-frozen": {"merge_subwords": True},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_what_labels(case: str, models: Path, tmp_path: Path) -> None:
    """A second run loads what the first has written and labels alike."""
    model = models / next(name for name in ("llama", "mistral", *ENCODERS) if case.startswith(name))
    options = CASES[case]
    trained, again = tmp_path / "trained", tmp_path / "again"
    run_exp(recipe(model, trained, **options))
    assert losses(trained)[-1] < losses(trained)[0]
    labelled = (trained / "predictions.conll").read_text("utf-8")
    assert labelled.splitlines()[0].count("\t") == 2
    assert (trained / "confusions.png").is_file()
    assert "word-task" in (trained / "recipe.yaml").read_text("utf-8")

    start: dict[str, Any] = {"do_train": False, "classifier_path": str(trained)}
    if options.get("train_backbone") == "lora":
        start |= {"adapter_name_or_path": str(trained)}
    if options.get("train_backbone") == "full":
        start |= {"model_name_or_path": str(trained)}
    run_exp(recipe(model, again) | options | start | {"output_dir": str(again)})
    assert (again / "predictions.conll").read_text("utf-8") == labelled
    assert metrics(again)["eval_loss"] == pytest.approx(metrics(trained)["eval_loss"], abs=1e-5)


def test_cached_states_train_as_fresh_ones(models: Path, tmp_path: Path) -> None:
    for cached in (True, False):
        run_exp(recipe(models / "llama", tmp_path / str(cached), cache_hidden_states=cached))
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    assert metrics(tmp_path / "True")["eval_loss"] == pytest.approx(metrics(tmp_path / "False")["eval_loss"], rel=1e-4)


def test_accumulating_equals_a_large_batch(models: Path, tmp_path: Path) -> None:
    common = FULL | {"classifier_dropout": 0.0, "optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
    run_exp(recipe(models / "llama", tmp_path / "large", **common, per_device_train_batch_size=8))
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    run_exp(recipe(models / "llama", tmp_path / "small", **(common | accumulated)))
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), abs=2e-4)
    large, small = (load_file(tmp_path / name / "word_classifier.safetensors") for name in ("large", "small"))
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, LORA | {"lora_dropout": 0.1}], ids=["frozen", "lora"])
def test_interrupted_and_resumed_is_uninterrupted(options: dict[str, Any], models: Path, tmp_path: Path) -> None:
    common = {**options, "save_strategy": "steps", "save_steps": 4, "do_eval": False, "do_predict": False}
    run_exp(recipe(models / "llama", tmp_path / "whole", **common))
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    run_exp(recipe(models / "llama", tmp_path / "resumed", **common, resume_from_checkpoint=str(checkpoint)))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        expected, found = load_file(path), load_file(tmp_path / "resumed" / path.name)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_words_behind_the_cut_count_as_wrong(models: Path, tmp_path: Path) -> None:
    run_exp(recipe(models / "llama", tmp_path, cutoff_len=6))
    lines = [line.split("\t") for line in (tmp_path / "predictions.conll").read_text("utf-8").splitlines() if line]
    cut = [cells for cells in lines if cells[2] == "(not read)"]
    assert cut
    right = sum(gold == said for _, gold, said in lines)
    assert metrics(tmp_path)["eval_accuracy"] == pytest.approx(right / len(lines))
    assert metrics(tmp_path)["eval_words"] == len(lines)


def test_labels_that_training_has_not_count_as_wrong_if_asked(models: Path, tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"], "ner": ["O", "B-PER"]}, {"words": ["a", "b"], "ner": ["O", "B-NEW"]}]
    for name, row in zip(("known", "unseen"), rows, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    info = {name: {"file_name": f"{name}.jsonl", "formatting": "words"} for name in ("known", "unseen")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    data = {"dataset_dir": str(tmp_path), "dataset": "known", "eval_dataset": "unseen", "learning_rate": 0.05}
    with pytest.raises(ValueError, match=r"unseen\.jsonl:1: the label `B-NEW` of the word `b`"):
        run_exp(recipe(models / "llama", tmp_path / "refused", **data))
    run_exp(recipe(models / "llama", tmp_path / "out", **data, unseen_labels="count_as_wrong"))
    assert metrics(tmp_path / "out")["eval_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_backbone": "full", "finetuning_type": "lora"}, "`train_backbone: full` and `finetuning_type: lora`"),
        ({"word_task": "upos"}, "has no column `upos`"),
        ({"do_train": False}, "There is no trained classifier to evaluate"),
        ({"classifier_path": "nowhere"}, "`classifier_path: nowhere` holds no classifier"),
        ({"eval_dataset": None, "val_size": 0.1, "do_train": False}, "labels `eval_dataset`: name one"),
        ({"dataset": "prose"}, "`stage: word-task` reads `words`"),
    ],
)
def test_one_sentence_for_bad_input(options: dict[str, Any], sentence: str, models: Path, tmp_path: Path) -> None:
    wanted = {name: each for name, each in (recipe(models / "llama", tmp_path) | options).items() if each is not None}
    with pytest.raises(ValueError, match=sentence):
        run_exp(wanted)


def test_encoders_are_not_made_causal(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`attention: causal` is not supported by BertModel"):
        run_exp(recipe(models / "bert", tmp_path, attention="causal"))


def test_a_classifier_is_not_read_otherwise(models: Path, tmp_path: Path) -> None:
    run_exp(recipe(models / "llama", tmp_path / "a"))
    other = recipe(models / "llama", tmp_path / "b", do_train=False, classifier_path=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="was trained with `merge_subwords: false`, the recipe says `true`"):
        run_exp(other | {"merge_subwords": True})


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("word-task.md") == declared_options(WordTaskOptions)
