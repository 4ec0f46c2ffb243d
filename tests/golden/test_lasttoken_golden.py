"""Last-token pooling and appended EOS against tDRO's numbers."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

from llamafactory_embed.data.prompts import PromptedText
from llamafactory_embed.data.tokenization import tokenize_texts
from llamafactory_embed.model.pooling import build_pooler
from tests.golden.case_files import GoldenCase, golden_cases


@golden_cases("tdro/lasttoken")
def test_pooling(case: GoldenCase) -> None:
    for batch in case.part("pooling"):
        mask = torch.tensor(batch["attention_mask"]).bool()
        hidden = torch.tensor(batch["hidden"], dtype=torch.float64)[mask]  # [T, d]
        for pooling, key in (("last", "expected"), ("mean", "expected_mean_pooling")):
            if key not in batch:
                continue
            pooler = build_pooler(pooling, hidden_size=hidden.shape[1], num_layers=1, causal=True)
            expected = torch.tensor(batch[key], dtype=torch.float64)
            torch.testing.assert_close(pooler([hidden], mask.sum(1)), expected, rtol=0, atol=1e-12)


@golden_cases("tdro/lasttoken")
def test_eos_is_appended_after_truncation(case: GoldenCase) -> None:
    tokenizer = AutoTokenizer.from_pretrained(case.folder / "tokenizer")
    for row in case.part("eos_append")["rows"]:
        texts = [PromptedText("", row["text"])]
        with_eos = tokenize_texts(tokenizer, texts, max_length=row["max_length"], append_eos=True)
        assert with_eos[0].token_ids == row["expected_ids"]
        if "ids_when_the_tokenizer_has_no_eos_switch" in row:
            plain = tokenize_texts(tokenizer, texts, max_length=row["max_length"])
            assert plain[0].token_ids == row["ids_when_the_tokenizer_has_no_eos_switch"]


@golden_cases("tdro/lasttoken")
def test_batch(case: GoldenCase) -> None:
    tokenizer = AutoTokenizer.from_pretrained(case.folder / "tokenizer")
    batch = case.part("collated_query_batch")
    texts = [PromptedText("", text) for text in batch["texts"]]
    rows = tokenize_texts(tokenizer, texts, max_length=batch["max_length"], append_eos=True)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert row.token_ids == [token for token, real in zip(ids, mask, strict=True) if real]
