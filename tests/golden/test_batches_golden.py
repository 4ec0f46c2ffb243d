"""Rows and batches against the numbers of LLM2Vec (E5 data) and tDRO (collation)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.formats import parse_record
from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.rows import Row, Task, sees_own_passages_only
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler

from .case_files import GoldenCase, golden_cases


def read_tasks(data: dict[str, Any], folder: Path) -> list[Task]:
    entries = []
    for name in data["dataset_order"]:
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, data["datasets"][name])), encoding="utf-8")
        settings = {"file_name": file.name, "formatting": "retrieval", "instruction": data["prompts"][name]}
        entries.append(make_entry(name, settings, str(folder)))
    return tasks_of_entries(entries, None, False, 1, 0, HubOptions())


@golden_cases("llm2vec/e5_batches")
def test_batches_of_the_e5_data(case: GoldenCase, tmp_path: Path) -> None:
    data = case.data
    dataset = RetrievalDataset(read_tasks(data, tmp_path), num_negatives=1)
    for run in data["runs"]:
        options = BatchingOptions(shuffle_rows=run["shuffle_individual_datasets"])
        sampler = GlobalBatchSampler(dataset, run["effective_batch_size"], options, run["seed"])
        batches = [[row for _, row in batch] for batch in sampler]
        assert batches == run["batches_of_ids"]
        assert [dataset[batch[0]].task for batch in batches] == run["task_of_each_batch"]


@golden_cases("llm2vec/e5_batches")
def test_texts_of_the_e5_data(case: GoldenCase, tmp_path: Path) -> None:
    data = case.data
    dataset = RetrievalDataset(read_tasks(data, tmp_path), num_negatives=1)
    separator = data["separator"]
    assert len(dataset) == len(data["expected_texts_by_id"])
    for row, expected in enumerate(data["expected_texts_by_id"]):
        example = dataset[row]
        assert example.passage_instruction == ""
        query = f"{example.query_instruction}; {separator}{example.query}"
        assert [query, separator + example.positive, separator + example.negatives[0]] == expected


@golden_cases("tdro/contrastive")
def test_passages_of_tdro(case: GoldenCase) -> None:
    collation = case.part("collation")
    found = []
    for feature in collation["features"]:
        row = parse_record(feature, {}, "features", 1)
        assert isinstance(row, Row)
        found += [feature.get("passage_prompt", "") + text for text in (*row.positives, *row.negatives)]
    assert found == collation["expected_passage_strings"]


@golden_cases("tdro/contrastive")
def test_names_of_tasks_that_see_their_own_passages_only(case: GoldenCase) -> None:
    masking = case.part("domain_masking")
    assert [sees_own_passages_only(name) for name in masking["domain_names"]] == masking[
        "expected_only_hard_negatives"
    ]
