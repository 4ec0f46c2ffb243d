"""Text → string → token ids → pooled tokens → embedding against LLM2Vec's numbers, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llamafactory_embed.data.prompts import PromptedText, parse_template
from llamafactory_embed.data.tokenization import TokenizedText
from llamafactory_embed.model.packed import pack_texts
from llamafactory_embed.model.pooling import Pooling, build_pooler
from tests.golden.case_files import GoldenCase, golden_cases, nothing_to_compare
from tests.golden.llm2vec_texts import shorten_documents, tokenize_and_count


POOLING_OF_MODE: dict[str, Pooling] = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "eos",
    "last_token": "last",
    "bos_token": "bos",
}


@cache
def load_tokenizer(case: GoldenCase) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(case.folder / "tokenizer")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of a case, loaded once, with bidirectional attention."""

    @cache
    def load(case: GoldenCase) -> PreTrainedModel:
        folder: Path = case.copy_model(tmp_path_factory.mktemp("encode") / "model")
        model = AutoModel.from_pretrained(folder).eval()
        model.config.is_causal = False
        return model

    return load


def render(case: GoldenCase, pairs: Sequence[Sequence[str]], eos_in_writing: bool = False) -> list[PromptedText]:
    """Documents cut by words, then the LLM2Vec template. Its mode `eos_token` writes EOS behind the text."""
    config, tokenizer = case.data["config"], load_tokenizer(case)
    texts = shorten_documents(
        tokenizer,
        [text for _, text in pairs],
        doc_max_length=config["doc_max_length"],
        max_length=config["max_length"],
    )
    if eos_in_writing:
        texts = [f"{text.rstrip()} {tokenizer.eos_token}" for text in texts]
    template = parse_template("llm2vec")
    return [template.render(text, instruction) for text, (instruction, _) in zip(texts, pairs, strict=True)]


def tokenize(case: GoldenCase, texts: list[PromptedText], skip_instruction: bool = True) -> list[TokenizedText]:
    return tokenize_and_count(
        load_tokenizer(case), texts, max_length=case.data["config"]["max_length"], skip_instruction=skip_instruction
    )


def mask_of(row: TokenizedText) -> list[int]:
    return [int(position >= row.pooled_from) for position in range(len(row.token_ids))]


@torch.no_grad()
def embed(model: PreTrainedModel, rows: list[TokenizedText], pooling: Pooling) -> torch.Tensor:
    """Each text alone through the model, then all of them packed through the pooler."""
    states = [model(input_ids=torch.tensor([row.token_ids])).last_hidden_state[0] for row in rows]
    pooler = build_pooler(pooling, hidden_size=states[0].shape[1], num_layers=1, causal=False)
    (packed,) = pack_texts([row.token_ids for row in rows], 10**9, [row.pooled_from for row in rows])
    in_order = [states[index] for index in packed.text_indices]
    embeddings = pooler([torch.cat(in_order)], packed.lengths, packed.pooled_tokens)
    return embeddings[torch.tensor(packed.text_indices).argsort()]


def assert_embeddings(actual: torch.Tensor, expected: Any, case: GoldenCase) -> None:
    tolerance = case.data["tolerance"]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=tolerance["atol"], rtol=tolerance["rtol"])


@golden_cases("llm2vec/encode")
def test_documents_are_cut_by_words(case: GoldenCase) -> None:
    rows = case.part("doc_truncation_table")
    rendered = render(case, [(row["instruction"], row["text"]) for row in rows])
    separator = case.data["separator"]
    assert [text.prefix + separator + text.text for text in rendered] == [row["expected"] for row in rows]


@golden_cases("llm2vec/encode")
@pytest.mark.parametrize("eos_in_writing", [False, True])
def test_steps(case: GoldenCase, eos_in_writing: bool) -> None:
    steps = case.part("steps_of_each_input")
    mode = "eos_token_mode_" if eos_in_writing else ""
    if any(f"{mode}input_ids" not in step for step in steps):
        nothing_to_compare("tokens of the mode `eos_token`")
    rendered = render(case, [step["pair"] for step in steps], eos_in_writing)
    for step, text, row in zip(steps, rendered, tokenize(case, rendered), strict=True):
        string = step["eos_token_mode_string" if eos_in_writing else "string_after_doc_truncation"]
        assert text.prefix + case.data["separator"] + text.text == string
        assert row.token_ids == step[f"{mode}input_ids"]
        assert mask_of(row) == step[f"{mode}embed_mask"]


@golden_cases("llm2vec/encode")
def test_embeddings(case: GoldenCase, models: Any) -> None:
    inputs = case.data["inputs"]
    pairs = inputs.get("pairs", []) + [["", text] for text in inputs.get("plain", [])]
    for expected in case.data["expected_embeddings"]:
        mode = expected["pooling_mode"]
        rendered = render(case, pairs, eos_in_writing=mode == "eos_token")
        rows = tokenize(case, rendered, expected["skip_instruction"])
        embeddings = embed(models(case), rows, POOLING_OF_MODE[mode])
        assert_embeddings(embeddings, expected.get("pairs", []) + expected.get("plain", []), case)


@golden_cases("llm2vec/encode")
def test_texts_without_tokens_of_their_own(case: GoldenCase, models: Any) -> None:
    """The original's mean over a text alone in its batch is right; its other values depend on padding, or are 0."""
    zero_mask = case.part("zero_mask_rows")
    rows = tokenize(case, render(case, zero_mask["inputs_alone"]))
    for expected in zero_mask["expected"]:
        pooling = POOLING_OF_MODE[expected["pooling_mode"]]
        embeddings = embed(models(case), rows, pooling)
        for row, embedding, value in zip(rows, embeddings, expected["each_encoded_alone"], strict=True):
            if pooling == "mean" or row.pooled_from < len(row.token_ids):
                assert_embeddings(embedding, value, case)
            else:
                assert embedding.norm() > 0


def split_at_separator(string: str, separator: str) -> PromptedText:
    """A string of the table: instruction, S, text, and sometimes S and a rest. Without S all of it is instruction."""
    prefix, _, rest = string.partition(separator)
    text, _, suffix = rest.partition(separator)
    return PromptedText(prefix, text, suffix)


@golden_cases("llm2vec/encode")
def test_embed_masks(case: GoldenCase) -> None:
    table = case.part("embed_mask_table")
    tokenizer, separator = load_tokenizer(case), case.data["separator"]
    rows = tokenize_and_count(
        tokenizer,
        [split_at_separator(row["string"], separator) for row in table["rows"]],
        max_length=table["max_length"],
    )
    for row, golden in zip(rows, table["rows"], strict=True):
        assert tokenizer.convert_ids_to_tokens(row.token_ids) == golden["tokens"], golden["id"]
        assert row.token_ids == golden["diffusion_embedder"]["input_ids"], golden["id"]
        assert mask_of(row) == golden["diffusion_embedder"]["embed_mask"], golden["id"]

    if "embed_mask_batch" not in case.data:
        return
    batch = case.data["embed_mask_batch"]
    by_id = {golden["id"]: row for golden, row in zip(table["rows"], rows, strict=True)}
    for name, ids, real, mask in zip(
        batch["ids"], batch["input_ids"], batch["attention_mask"], batch["embed_mask"], strict=True
    ):
        length = sum(real)  # padding is on the left
        assert by_id[name].token_ids == ids[-length:]
        assert mask_of(by_id[name]) == mask[-length:]
