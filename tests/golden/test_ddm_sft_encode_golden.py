"""Rows of source and target against DiffuLLaMA's, where its result is right."""

from __future__ import annotations

from typing import Any

from llamafactory_embed.diffusion.texts import DiffuSeqTokens, diffuseq_text
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare


@golden_cases("ddm/sft_encode")
def test_rows(case: GoldenCase) -> None:
    data = case.data
    special = DiffuSeqTokens(**data["special_ids"])
    for row in data["cases"]:
        text = diffuseq_text(row["source_ids"], row["target_ids"], row["cutoff_len"], special)
        expected: dict[str, Any] = row["expected"]
        assert text.token_ids == expected["input_ids"], row["name"]
        assert text.is_prompt == [bool(each) for each in expected["src_mask"]], row["name"]
        # Padding is seen and learned: all of a text's tokens are attended, and those that are no prompt are labels.
        assert [1] * len(text) == expected["attention_mask"], row["name"]
        assert text.token_ids == expected["labels"], row["name"]


@golden_cases("ddm/sft_encode")
def test_a_row_of_the_original_that_lost_its_target(case: GoldenCase) -> None:
    buggy = [row for row in case.data["cases"] if row.get("original_is_buggy")]
    if not buggy:
        nothing_to_compare("row that lost its target")
    special = DiffuSeqTokens(**case.data["special_ids"])
    for row in buggy:
        text = diffuseq_text(row["source_ids"], row["target_ids"], row["cutoff_len"], special)
        assert text.token_ids != row["original_output"]["input_ids"]
        assert text.token_ids[-1] == special.eos
