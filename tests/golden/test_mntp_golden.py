"""Masked next-token prediction against LLM2Vec: losses of given masks, their gradients, an adapter, and the masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llamafactory_embed.loading.llm2vec_adapters import ModuleNames, adapter_for_causal_lm
from llamafactory_embed.model.mask_token import find_mask_token
from llamafactory_embed.model.token_predictor import (
    NO_LABEL,
    CorruptedText,
    TokenBatch,
    TokenPredictor,
    pack_corrupted_texts,
)
from llamafactory_embed.train.embed.mntp.corruption import MntpCorruption
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare


MASKING = {"default_80_10_10": "bert", "all_mask": "all_mask"}


def load_model(case: GoldenCase, subcase: dict[str, Any], folder: Path) -> PreTrainedModel:
    source = case.folder_of(subcase["model"].split(" ")[0]) if "model" in subcase else case.folder
    config = AutoConfig.from_pretrained(case.copy_model(folder, source))
    return AutoModelForCausalLM.from_pretrained(folder, config=config).eval()


def batches_of(subcase: dict[str, Any], max_tokens: int | None = None) -> list[TokenBatch]:
    """The case's rows without their padding."""
    rows, labels = torch.tensor(subcase["input_ids"]), torch.tensor(subcase["labels"])
    real = torch.tensor(subcase.get("attention_mask", [[1] * rows.shape[1]] * len(rows))).bool()
    texts = [CorruptedText(row[keep], label[keep]) for row, label, keep in zip(rows, labels, real, strict=True)]
    return pack_corrupted_texts(texts, max_tokens)


def in_order_of_rows(batches: list[TokenBatch], values: Tensor) -> Tensor:
    """What belongs to the labels of packed texts, which lie longest first, in the order of the rows."""
    rows = [
        index
        for batch in batches
        for index, labels in zip(
            batch.packed.text_indices, batch.labels.split(list(batch.packed.lengths)), strict=True
        )
        for label in labels[1:]
        if label != NO_LABEL
    ]
    return values[torch.tensor(rows).argsort(stable=True)]


@golden_cases("llm2vec/mntp")
@pytest.mark.parametrize("max_tokens", [None, 24], ids=["one forward", "several forwards"])
def test_losses(case: GoldenCase, max_tokens: int | None, tmp_path: Path) -> None:
    compared = 0
    for number, subcase in enumerate(case.data["subcases"]):
        expected = subcase["expected"]
        if not expected["per_label"]:
            continue
        model = TokenPredictor(load_model(case, subcase, tmp_path / str(number)), shift=True, sliding_window="ignore")
        batches = batches_of(subcase, max_tokens)
        with torch.no_grad():
            found = model(batches, with_correct=True)
        losses = torch.tensor([label["cross_entropy"] for label in expected["per_label"]])
        torch.testing.assert_close(in_order_of_rows(batches, found.losses), losses, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.losses.mean(), torch.tensor(expected["loss"]), atol=1e-4, rtol=1e-4)
        assert float(found.correct.float().mean()) == pytest.approx(expected["accuracy"], abs=1e-6)
        compared += len(losses)
    if compared == 0:
        nothing_to_compare("losses")


@golden_cases("llm2vec/mntp")
@torch.no_grad()
def test_most_probable_tokens(case: GoldenCase, tmp_path: Path) -> None:
    """With them as labels, all predictions are correct; a recorded label is the most probable token only by chance."""
    compared = 0
    for number, subcase in enumerate(case.data["subcases"]):
        probable = torch.tensor(subcase["labels"])
        for label in subcase["expected"]["per_label"]:
            probable[label["row"], label["position"]] = label["argmax"]
        model = TokenPredictor(load_model(case, subcase, tmp_path / str(number)), shift=True, sliding_window="ignore")
        correct = model(batches_of(subcase | {"labels": probable.tolist()}), with_correct=True).correct
        assert correct.all()
        compared += len(correct)
    if compared == 0:
        nothing_to_compare("most probable tokens")


@golden_cases("llm2vec/mntp")
@pytest.mark.parametrize("max_tokens", [None, 24], ids=["one forward", "several forwards"])
def test_gradients(case: GoldenCase, max_tokens: int | None, tmp_path: Path) -> None:
    compared = 0
    for number, subcase in enumerate(case.data["subcases"]):
        if "gradient" not in subcase["expected"]:
            continue
        model = TokenPredictor(load_model(case, subcase, tmp_path / str(number)), shift=True, sliding_window="ignore")
        scores = model(batches_of(subcase, max_tokens))
        (scores.loss / len(scores.losses)).backward()
        found = {name: each.grad for name, each in model.backbone.named_parameters() if each.grad is not None}
        expected = dict(subcase["expected"]["gradient"])
        for name, norm in expected.pop("frobenius_norm", {}).items():
            torch.testing.assert_close(found[name].norm(), torch.tensor(norm), atol=1e-5, rtol=1e-3)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], torch.tensor(gradient), atol=1e-5, rtol=1e-3)
        compared += len(subcase["expected"]["gradient"])
    if compared == 0:
        nothing_to_compare("gradients")


@golden_cases("llm2vec/mntp")
def test_labels_without_a_predecessor_poison_nothing(case: GoldenCase, tmp_path: Path) -> None:
    compared = 0
    for number, subcase in enumerate(case.data["subcases"]):
        if subcase["expected"]["per_label"]:
            continue
        model = TokenPredictor(load_model(case, subcase, tmp_path / str(number)), shift=True)
        scores = model(batches_of(subcase))
        assert scores.losses.shape == (0,)
        scores.loss.backward()
        gradients = [each.grad for each in model.parameters()]
        assert all(each is not None and not each.any() for each in gradients)
        compared += 1
    if compared == 0:
        nothing_to_compare("labels without a predecessor")


@golden_cases("llm2vec/mntp")
@torch.no_grad()
def test_loss_with_the_adapter(case: GoldenCase, tmp_path: Path) -> None:
    subcase, expected = case.data["subcases"][0], case.part("lora")["expected_on_first_subcase"]
    backbone = load_model(case, subcase, tmp_path / "model")
    modules = ModuleNames.of_config(backbone.config)
    adapter = adapter_for_causal_lm(case.folder_of("adapter"), modules, tmp_path / "converted")
    model = TokenPredictor(PeftModel.from_pretrained(backbone, adapter).eval(), shift=True)
    batches = batches_of(subcase)
    losses = model(batches).losses
    wanted = torch.tensor(expected["cross_entropy"])
    torch.testing.assert_close(in_order_of_rows(batches, losses), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses.mean(), torch.tensor(expected["loss"]), atol=1e-4, rtol=1e-4)


@golden_cases("llm2vec/mntp")
def test_mask_tokens(case: GoldenCase, tmp_path: Path) -> None:
    kinds = case.part("collator")["mask_token_types"]
    for kind, expected in kinds.items():
        tokenizer = AutoTokenizer.from_pretrained(case.copy_model(tmp_path / kind))
        before = len(tokenizer)
        token = find_mask_token(tokenizer, kind)
        assert (token.text, token.id) == (expected["mask_token"], expected["mask_token_id"])
        assert len(tokenizer) == expected["vocabulary_size_after"]
        assert token.is_added == (len(tokenizer) > before)


@golden_cases("llm2vec/mntp")
def test_recorded_masks_obey_the_rules_of_ours(case: GoldenCase, tmp_path: Path) -> None:
    """What is eligible, and which fates a chosen token can have: each recorded mask is one that ours could draw."""
    tokenizer = AutoTokenizer.from_pretrained(case.copy_model(tmp_path / "model"))
    compared = 0
    for subcase in case.data["subcases"]:
        if "original_input_ids" not in subcase:
            continue
        for tokens, special, inputs, labels in zip(
            *(
                torch.tensor(subcase[key])
                for key in ("original_input_ids", "special_tokens_mask", "input_ids", "labels")
            ),
            strict=True,
        ):
            everything = corruption_of(case, tokenizer, "all_mask", 1.0)
            our_inputs, our_labels = everything.hide(tokens, [len(tokens)], torch.Generator())
            eligible = our_labels != NO_LABEL
            # ours leaves the first token out as well: nothing predicts it
            assert torch.equal(eligible[1:], special[1:] == 0)
            chosen = labels != NO_LABEL
            assert torch.equal(labels[chosen], tokens[chosen])
            assert torch.equal(inputs[~chosen], tokens[~chosen])
            if MASKING[subcase["collator"]] == "all_mask":
                assert torch.equal(our_inputs[chosen & eligible], inputs[chosen & eligible])
            compared += int(chosen.sum())
    if compared == 0:
        nothing_to_compare("recorded masks")


@golden_cases("llm2vec/mntp")
def test_shares_of_hidden_tokens(case: GoldenCase, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(case.copy_model(tmp_path / "model"))
    collator = case.part("collator")
    generator = torch.Generator().manual_seed(0)
    for row in collator["measured_with_the_original"]:
        corrupt = corruption_of(case, tokenizer, MASKING[row["collator"]], row["mlm_probability"])
        ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in corrupt.special_ids])
        tokens = ordinary[torch.randint(len(ordinary), (100_000,), generator=generator)]
        inputs, labels = corrupt.hide(tokens, [len(tokens)], generator)
        chosen = labels != NO_LABEL
        is_mask = chosen & (inputs == corrupt.mask_id)
        is_same = chosen & (inputs == tokens)
        assert float(chosen.float().mean()) == pytest.approx(row["fraction_selected"], abs=0.01)
        count = int(chosen.sum())
        assert int(is_mask.sum()) / count == pytest.approx(row["of_selected_mask"], abs=0.02)
        assert int((is_same & ~is_mask).sum()) / count == pytest.approx(row["of_selected_unchanged"], abs=0.02)
        other = chosen & ~is_mask & ~is_same
        assert int(other.sum()) / count == pytest.approx(row["of_selected_other"], abs=0.02)


def corruption_of(case: GoldenCase, tokenizer: Any, masking: Any, probability: float) -> MntpCorruption:
    return MntpCorruption(
        seed=0,
        mask_id=case.data["collator"]["mask_token_id_used_here"],
        vocabulary_size=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
        probability=probability,
        masking=masking,
        shift=True,
    )
