"""`stage: mntp` from the recipe to the checkpoint, in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory_embed import Encoder
from llamafactory_embed.data.document_batches import DocumentRow
from llamafactory_embed.diffusion.batches import TokenCollator
from llamafactory_embed.diffusion.texts import texts_of_documents
from llamafactory_embed.model.mask_token import EMBEDDING_NAME, RECORD_NAME, load_mask_embedding
from llamafactory_embed.model.packed import find_decoder, forward_packed, pack_texts
from llamafactory_embed.model.token_predictor import NO_LABEL, TokenPredictor
from llamafactory_embed.train.embed.mntp import workflow
from llamafactory_embed.train.embed.mntp.corruption import MntpCorruption
from tests.e2e.contrastive_runs import RunResult, perform, write_data
from tests.e2e.contrastive_runs import recipe as contrastive_recipe
from tests.e2e.token_runs import recipe, write_documents


LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
EVALUATED = {"eval_dataset": "heldout", "do_eval": True}
ADAPTATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, added mask": {"mask_token": "mask"},
    "lora": LORA,
    "lora, added mask": {**LORA, "mask_token": "mask"},
}

Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_documents(tmp_path_factory.mktemp("mntp") / "data")
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    rows = {
        "empty": [{"text": ""}, {"text": "  \n"}],
        "words": [{"body": "some text"}] * 4,
        "short": [{"text": "a"}] * 4,
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}}
    info["bodies"] = {"file_name": "words.jsonl", "columns": {"prompt": "body"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def run(tiny_llama: Path, data: Path, tmp_path: Path) -> Run:
    """Perform a recipe in `tmp_path / name`."""

    def perform_recipe(name: str, **options: Any) -> RunResult:
        return perform(recipe(options.pop("model", tiny_llama), data, tmp_path / name, **options))

    return perform_recipe


def evaluated(folder: Path) -> dict[str, float]:
    """The metrics after the last step."""
    return json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------
# What a run leaves
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_run_learns_and_leaves_a_checkpoint(adaptation: str, run: Run, tmp_path: Path, data: Path) -> None:
    options = ADAPTATIONS[adaptation]
    result = run(
        "out", **options, **EVALUATED, max_steps=30, eval_strategy="steps", eval_steps=15, plot_loss=True,
        optim="adamw_torch", learning_rate=3e-3, logging_steps=15,
    )  # fmt: skip
    before, after = result.metrics[0], result.metrics[-1]
    assert after["eval_loss"] < before["eval_loss"] < math.log(300) + 1
    assert after["eval_pseudo_perplexity"] == pytest.approx(math.exp(after["eval_loss"]))
    assert 0 <= after["eval_accuracy"] <= 1
    assert (tmp_path / "out" / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "training_eval_loss.png").is_file()

    record = json.loads((tmp_path / "out" / RECORD_NAME).read_text(encoding="utf-8"))
    assert record["shift"] is True
    assert record["mask_token"] == ("<mask>" if "mask" in adaptation else "_")
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text("utf-8"))["dataset"] == "prose"
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| loss | {after['eval_loss']:.4f} |" in card
    header = ModelCard(card).data
    assert header.pipeline_tag == "fill-mask"
    assert round(after["eval_loss"], 5) in [each.metric_value for each in header.eval_results]
    assert f"`{record['mask_token']}`, id {record['mask_token_id']}" in card
    assert (tmp_path / "out" / EMBEDDING_NAME).is_file() == (adaptation == "lora, added mask")


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_checkpoint_is_evaluated_as_it_was_trained(
    adaptation: str, run: Run, tmp_path: Path, tiny_llama: Path
) -> None:
    """Mask token, its embedding and the shift need not be named again; plain transformers and PEFT load the rest."""
    options = ADAPTATIONS[adaptation]
    is_lora = "lora" in adaptation
    run("out", **options, **EVALUATED, shift=False, learning_rate=0.5)
    start = {"adapter_name_or_path": str(tmp_path / "out")} if is_lora else {"model": tmp_path / "out"}
    kind = LORA if is_lora else {}
    run("again", **kind, **start, **EVALUATED, do_train=False)
    found = evaluated(tmp_path / "again")
    assert found["eval_loss"] == pytest.approx(evaluated(tmp_path / "out")["eval_loss"], abs=1e-5)
    run("untrained", **kind, **EVALUATED, do_train=False, shift=False)
    assert abs(evaluated(tmp_path / "untrained")["eval_loss"] - found["eval_loss"]) > 1e-2

    if is_lora:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "out")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert loaded.config.is_causal is False
        assert loaded.config.vocab_size >= len(AutoTokenizer.from_pretrained(tmp_path / "out"))


def test_an_added_token_starts_as_the_mean_and_learns(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    matrix = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    for name, options in (("lora", LORA), ("full", {})):
        for rate in (0.0, 0.5):
            run(f"{name}-{rate}", **options, mask_token="mask", learning_rate=rate, masking="all_mask")

    def vector(folder: str) -> torch.Tensor:
        saved = load_mask_embedding([tmp_path / folder])
        if saved is not None:
            return saved
        return load_file(tmp_path / folder / "model.safetensors")["model.embed_tokens.weight"][len(matrix)]

    for name in ("lora", "full"):
        torch.testing.assert_close(vector(f"{name}-0.0"), matrix.mean(dim=0), atol=1e-6, rtol=1e-4)
        assert (vector(f"{name}-0.5") - matrix.mean(dim=0)).norm() > 1e-3
    torch.testing.assert_close(  # the rows of all other tokens are still the base model's
        load_file(tmp_path / "full-0.0" / "model.safetensors")["model.embed_tokens.weight"][: len(matrix)], matrix
    )


# ---------------------------------------------------------------------------------------------------------------
# What a step is
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_accumulation_equals_the_large_batch(adaptation: str, run: Run) -> None:
    """Micro-batches have different numbers of labels, and the last rows of an epoch fill no batch."""
    options = ADAPTATIONS[adaptation] | {"max_steps": 5}
    whole = run("whole", **options)
    for name, parts in {
        "accumulated": {"batch_size": 2, "gradient_accumulation_steps": 4},
        "several forwards": {"max_tokens_per_batch": 64},
        "workers": {"dataloader_num_workers": 2},
    }.items():
        found = run(name, **options, **parts)
        assert found.losses == pytest.approx(whole.losses, abs=1e-5)
        assert found.parameters.keys() == whole.parameters.keys()
        for parameter, value in whole.parameters.items():
            torch.testing.assert_close(found.parameters[parameter], value, atol=1e-5, rtol=1e-4)
    assert len(set(whole.losses)) == 5


def test_masks_differ_from_epoch_to_epoch_and_with_the_seed(data: Path) -> None:
    tokens = list(range(10, 60))

    def labels(seed: int, epoch: int, place: int, others: int = 0) -> torch.Tensor:
        rows = [DocumentRow(tokens, [50], epoch, place)] + [DocumentRow(tokens, [50], 7, n) for n in range(others)]
        corrupt = MntpCorruption(seed, 5, 300, frozenset({0, 1, 2}), 0.3, "all_mask", shift=True)
        (batch,) = TokenCollator(texts_of_documents, corrupt, 10_000)(rows)["batches"]
        return batch.labels[:50]

    first = labels(1, 0, 0)
    assert torch.equal(first, labels(1, 0, 0, others=3))  # a row's masks do not depend on the batch
    for other in (labels(2, 0, 0), labels(1, 1, 0), labels(1, 0, 1)):
        assert not torch.equal(first, other)


def test_without_a_label_nothing_moves(run: Run, tiny_llama: Path) -> None:
    """Documents of one token and EOS, whose only token has no predecessor but BOS … and is hardly ever hidden."""
    result = run("out", dataset="short", mlm_probability=1e-6, batch_size=4)
    assert result.losses == [0.0, 0.0, 0.0]
    before = load_file(tiny_llama / "model.safetensors")
    for name, value in result.parameters.items():
        assert torch.equal(value, before[name.removeprefix("backbone.")]), name


# ---------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_fixed_masks(run: Run, tmp_path: Path, tiny_llama: Path, data: Path) -> None:
    """Recomputed document by document, from all logits."""
    found = {}
    for name, options in {"one": {}, "batches": {"per_device_eval_batch_size": 3}, "seed": {"data_seed": 1}}.items():
        run(name, **EVALUATED, do_train=False, packing=False, **options)
        found[name] = evaluated(tmp_path / name)
        assert found[name] == pytest.approx(found["one"], abs=1e-6)

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    mask, special = tokenizer.convert_tokens_to_ids("_"), frozenset(tokenizer.all_special_ids)
    corrupt = MntpCorruption(42, mask, len(tokenizer), special, 0.2, "bert", shift=True)
    collate = TokenCollator(texts_of_documents, corrupt, 10_000)
    model = TokenPredictor(AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), shift=True).backbone
    texts = [json.loads(line)["text"] for line in (data / "heldout.jsonl").read_text("utf-8").splitlines()]
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    pieces = [document[start : start + 48] for document in documents for start in range(0, len(document), 48)]
    losses, correct = [], []
    for place, piece in enumerate(pieces):
        (batch,) = collate([DocumentRow(piece, [len(piece)], 0, place)])["batches"]
        with torch.no_grad():
            logits = model(input_ids=batch.packed.token_ids[None]).logits[0, :-1]
        labels = batch.labels[1:]
        chosen = labels != NO_LABEL
        losses.append(torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none"))
        correct.append(logits[chosen].argmax(-1) == labels[chosen])
    assert found["one"]["eval_loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert found["one"]["eval_accuracy"] == pytest.approx(float(torch.cat(correct).float().mean()), abs=1e-6)


def test_an_evaluation_in_another_precision(run: Run, tmp_path: Path) -> None:
    for name, options in {"float32": {}, "bfloat16": {"bf16_full_eval": True}}.items():
        run(name, **EVALUATED, do_train=False, **options)
    full, half = (evaluated(tmp_path / name)["eval_loss"] for name in ("float32", "bfloat16"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


def test_several_sets_and_splits(run: Run, tmp_path: Path) -> None:
    run("each", eval_dataset="heldout,other", do_eval=True, eval_on_each_dataset=True)
    each = evaluated(tmp_path / "each")
    run("alone", eval_dataset="other", do_eval=True)
    assert each["eval_other_loss"] == pytest.approx(evaluated(tmp_path / "alone")["eval_loss"], abs=1e-6)
    assert each["eval_heldout_loss"] != each["eval_other_loss"]
    run("split", val_size=0.25, do_eval=True)
    assert evaluated(tmp_path / "split")["eval_loss"] > 0


# ---------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------


def test_streamed_and_pretokenized_data(run: Run, tmp_path: Path) -> None:
    held = run("held", disable_shuffling=True)
    run("writes", tokenized_path=str(tmp_path / "tokens"), disable_shuffling=True)
    assert run("reads", tokenized_path=str(tmp_path / "tokens"), disable_shuffling=True).losses == held.losses
    # A stream is shuffled in a buffer; one that holds a single document leaves the order.
    streamed = run("streamed", streaming=True, buffer_size=1, preprocessing_batch_size=1000)
    assert streamed.losses == pytest.approx(held.losses, abs=1e-6)
    run("split", streaming=True, buffer_size=1, val_size=4, do_eval=True, dataloader_num_workers=1)
    assert evaluated(tmp_path / "split")["eval_loss"] > 0


def test_any_text_column(run: Run) -> None:
    losses = run("column", dataset="bodies", batch_size=2).losses
    assert len(losses) == 3
    assert min(losses) > 0


def test_line_by_line_and_packing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe says reaches the data."""
    found = []

    def load(*args: Any, **kwargs: Any) -> Any:
        found.append((kwargs["line_by_line"], kwargs["packing"]))
        raise RuntimeError("enough")

    monkeypatch.setattr(workflow, "load_documents", load)
    for options in ({}, {"line_by_line": True}, {"packing": False}, {"packing": True}):
        with pytest.raises(RuntimeError, match="enough"):
            run("out", **options)
    assert found == [(False, True), (True, True), (False, False), (False, True)]


# ---------------------------------------------------------------------------------------------------------------
# What comes after it
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_it_is_the_start_of_an_embedder(adaptation: str, run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    """Contrastive training that learns nothing leaves the states of the model that was trained here."""
    run("mntp", **ADAPTATIONS[adaptation], learning_rate=0.5)
    is_lora = "lora" in adaptation
    start = {**LORA, "adapter_name_or_path": str(tmp_path / "mntp"), "create_new_adapter": True} if is_lora else {}
    model = tiny_llama if is_lora else tmp_path / "mntp"
    rows = write_data(tmp_path / "rows")
    perform(contrastive_recipe(model, rows, tmp_path / "embedder", **start, learning_rate=0.0, max_steps=1))

    text = "the study of stars"
    ids = AutoTokenizer.from_pretrained(tiny_llama)(text)["input_ids"]
    backbone = AutoModelForCausalLM.from_pretrained(tiny_llama if is_lora else tmp_path / "mntp")
    if is_lora:
        backbone = PeftModel.from_pretrained(backbone, tmp_path / "mntp")
    predictor = TokenPredictor(backbone.eval(), shift=True)
    with torch.no_grad():
        (states,) = forward_packed(find_decoder(predictor.backbone), pack_texts([ids])[0])
    expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
    np.testing.assert_allclose(Encoder(tmp_path / "embedder").encode([text])[0], expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no share": ({"mlm_probability": 0.0}, "`mlm_probability` must lie between 0 and 1"),
    "everything": ({"mlm_probability": 1.0}, "`mlm_probability` must lie between 0 and 1"),
    "masking": ({"masking": "bart"}, "did you mean `bert`"),
    "several tokens": ({"mask_token": "not one token"}, r"`mask_token: not one token` is \d+ tokens"),
    "column": ({"dataset": "words"}, r"no column 'text': name the column .* dataset_info\.json"),
    "empty": ({"dataset": "empty"}, "`dataset`: the data have no documents"),
    "nothing to predict": (
        {"eval_dataset": "short", "do_eval": True, "do_train": False, "mlm_probability": 1e-6},
        "`eval_dataset`: none of its tokens is hidden",
    ),
    "freeze": (
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "mask_token": "mask"},
        "`finetuning_type: freeze` does not train the embedding of the added token",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, run: Run) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        run("refused", **options)


def test_the_data_are_read_before_the_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(workflow, "load_token_predictor", load)
    with pytest.raises(ValueError, match="no documents"):
        run("refused", dataset="empty")
