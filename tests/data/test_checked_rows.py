"""What the check of the data lets through cannot stop a run later: every row is rejected with file and line, in one
sentence, or goes through drawing, tokenization and collation."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.data.problems import broken_character
from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.stream import StreamedBatches, stream_tasks
from llamafactory_embed.data.words.reader import load_sentences
from llamafactory_embed.data.words.tokenization import WordTokenizer
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveCollator
from tests.embedders import make_config
from tests.tiny_models import tiny_tokenizer


ODD_TEXTS = [
    "", " ", "\n", "\0", "a\0b", "\ud83d", "half \udc00 a character", "\ufeff", "\u200b", "\x1c", "\x07", "\u2028",
    "🙂", "e\u0301", "水" * 100, "{text}", "{instruction}", "<s>", "</s>", "0", "none",
]  # fmt: skip
texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(codec=None), max_size=12) | st.just("stone wall")
oddities = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.just({}) | st.just([[]])
values = texts | oddities | st.lists(texts | oddities, max_size=3)
numbers = st.floats() | st.integers() | st.just(10**400) | st.just("3") | st.none()
passages = st.lists(
    texts | st.fixed_dictionaries({"text": texts}, optional={"title": texts | st.none(), "ce_score": numbers}),
    max_size=3,
)
instructed = st.tuples(st.just("") | texts, texts)
IDS = {"known": "stone wall", "0": "wooden bridge", "empty": " "}
ids = st.sampled_from(list(IDS)) | st.just(0) | st.just("unknown") | oddities
RECORDS = {
    "triples": st.fixed_dictionaries(
        {"query": texts, "positive": texts | st.lists(texts, max_size=3)},
        optional={
            "negative": texts | st.lists(texts, max_size=3),
            "negative_1": texts,
            "negative_2": texts | st.none(),
            "score": numbers | st.lists(numbers, max_size=4),
            "instruction": texts,
        },
    ),
    "passages": st.fixed_dictionaries(
        {"query": texts, "positive_passages": passages},
        optional={
            "negative_passages": passages | st.dictionaries(st.sampled_from(["text", "title"]), st.lists(texts)),
            "new_negatives": passages,
        },
    ),
    "inference": st.fixed_dictionaries(
        {"premise": texts, "hypothesis": texts, "label": st.sampled_from([0, 1, 2, -1, "entailment", "contradiction"])}
    ),
    "texts": st.fixed_dictionaries({"text": texts}),
    "instructed": st.fixed_dictionaries(
        {"query": st.tuples(texts, texts), "pos": st.lists(instructed, max_size=2)},
        optional={"neg": st.lists(instructed | texts, max_size=2)},
    ),
    "sets": st.fixed_dictionaries({"set": st.lists(texts, max_size=3) | texts}),
    "arrays": st.lists(texts | oddities, min_size=1, max_size=4),
    "ids": st.fixed_dictionaries(
        {"query_id": ids, "positive_ids": ids | st.lists(ids | st.tuples(texts, ids), max_size=3)},
        optional={"negative_id": ids | st.lists(ids, max_size=3), "instruction": texts},
    ),
    "anything": st.dictionaries(
        st.sampled_from(["query", "positive", "negative", "score", "text", "premise", "hypothesis", "label"])
        | st.sampled_from(["positive_passages", "negative_passages", "negatve", "set", "query_id", "positive_ids"])
        | texts,
        values,
        max_size=5,
    ),
}
labelled_words = st.lists(st.tuples(texts, texts | numbers), min_size=1, max_size=3).map(
    lambda pairs: {"words": [word for word, _ in pairs], "ner": [label for _, label in pairs]}
)
BY_ID = {"corpus": "texts.jsonl", "queries": "texts.jsonl"}
any_record = st.one_of(list(RECORDS.values()))


def with_bert_normalizer() -> PreTrainedTokenizerBase:
    """A tokenizer that removes characters and adds nothing, so that a text may have no token at all."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.BertNormalizer(), normalizers.Strip()],
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte_level": tiny_tokenizer,
    "normalizing": with_bert_normalizer,
    "slow": ByT5Tokenizer,
}


@cache
def collator(name: str) -> ContrastiveCollator:
    config = make_config(pooling="mean", query_template="e5", skip_instruction=True)
    return ContrastiveCollator(EmbeddingTokenizer(TOKENIZERS[name](), config), 1 << 20)


def write(folder: str, records: list[Any], **entry: Any) -> Path:
    """Each record on a line; what JSON has no notation for is written as Python's reader knows it (NaN)."""
    path = Path(folder) / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    texts_by_id = Path(folder) / "texts.jsonl"
    texts_by_id.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in IDS.items()))
    info = {"rows": {"file_name": path.name, **entry}}
    (Path(folder) / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return path


def assert_rejected_by_line(error: ValueError, path: Path) -> None:
    """Either there is nothing to read, or every line told is one of the file and one sentence."""
    message = str(error)
    if message.endswith(("has no rows.", "has no sentences.")):
        return
    first, *told = message.split("\nKnown columns")[0].split(f"\n  {path}:")
    assert re.fullmatch(r"The data has \d+ bad rows( \(reading stopped there\))?; repair them .*:", first)
    assert told
    assert all(re.match(r"\d+: .", line) for line in told)
    assert broken_character(message) is None  # logs and terminals can show it


def assert_nothing_is_left(error: ValueError) -> None:
    """Where bad rows are skipped, only data without any good row are refused."""
    assert str(error).endswith(("has no rows.", "has no sentences."))


QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@QUICK
@given(records=st.lists(any_record, min_size=1, max_size=5), num_negatives=st.sampled_from([0, 1, 3]))
def test_rows_are_rejected_or_collated(tokenizer: str, records: list[Any], num_negatives: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, records)
        entry = make_entry("it", {"file_name": path.name, "formatting": "retrieval", **BY_ID}, folder)
        try:
            tasks_of_entries([entry], None, False, num_negatives, 42, HubOptions())
        except ValueError as error:
            assert_rejected_by_line(error, path)
        try:
            tasks = tasks_of_entries([entry], None, True, num_negatives, 42, HubOptions())
        except ValueError as error:
            assert_nothing_is_left(error)
            return
    dataset = RetrievalDataset(tasks, num_negatives)
    batch = collator(tokenizer)([dataset[1, index] for index in range(len(dataset))])["batch"]
    assert batch.rows == len(dataset)
    assert sum(len(packed.lengths) for packed in batch.packed) == len(dataset) * (2 + batch.negatives_per_row)
    assert min(length for packed in batch.packed for length in packed.lengths) > 0


@QUICK
@given(records=st.lists(any_record, min_size=1, max_size=5), num_negatives=st.sampled_from([0, 1, 3]))
def test_streamed_rows_are_rejected_or_collated(records: list[Any], num_negatives: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, records, formatting="retrieval", **BY_ID)
        try:
            stream_tasks("rows", folder, num_negatives=num_negatives)
        except ValueError as error:
            assert_rejected_by_line(error, path)
        try:
            tasks = stream_tasks("rows", folder, num_negatives=num_negatives, skip_bad_rows=True)
        except ValueError as error:
            assert_nothing_is_left(error)
            return
        for batch in StreamedBatches(tasks, 2, num_negatives=num_negatives):
            assert collator("byte_level")(batch)["batch"].rows == 2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@QUICK
@given(
    records=st.lists(
        labelled_words | st.dictionaries(st.sampled_from(["words", "ner", "tokens"]), values),
        min_size=1,
        max_size=4,
    ),
    labels=st.sampled_from([None, "ner"]),
)
def test_sentences_are_rejected_or_tokenized(tokenizer: str, records: list[Any], labels: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, records, formatting="words")
        try:
            load_sentences("rows", folder, labels)
        except ValueError as error:
            assert_rejected_by_line(error, path)
        try:
            data = load_sentences("rows", folder, labels, skip_bad_rows=True)
        except ValueError as error:
            assert_nothing_is_left(error)
            return
    tokenized = WordTokenizer.create(TOKENIZERS[tokenizer](), 32, "same_token", None)(
        [sentence.words for sentence in data.sentences]
    )
    assert all(sentence.token_ids for sentence in tokenized)
    assert all(broken_character(label) is None for label in data.labels)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"query": "a", "positive": "b \\ud83d"}', r"`positive` holds half a character \(U\+D83D at position 2\)"),
        ('{"query": "\\udc00", "positive": "b"}', r"`query` holds half a character \(U\+DC00 at position 0\)"),
        ('{"query": "a", "positive": "b", "negative": ["c", "\\ud83d"]}', "`negative` holds half a character"),
        ('{"query": "a", "positive": "b", "instruction": "\\ud83d"}', "`instruction` holds half a character"),
        ('{"query": "a", "positive_passages": [{"title": "\\ud83d", "text": "b"}]}', "`positive_passages` holds half"),
        ('{"query": "a", "positive_passages": {"title": ["b"], "text": []}}', "must be a list of passages"),
        ('{"query": "a", "positive_passages": {"title": "b", "text": "c"}}', "must be a list of passages"),
        ('{"query": "a", "positive": "b", "score": 1' + "0" * 400 + "}", "`score` must be a number"),
        ('{"query": "a", "positive": "b", "score": 1e39}', r"`score` must be a number, not 1e\+39"),
        ('{"query": 1' + "0" * 5000 + "}", "this JSON cannot be read"),
        ("[" * 100_000, "this JSON cannot be read|this is not JSON"),
    ],
)
def test_what_used_to_stop_a_run_is_a_bad_row(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "positive": "b"}\n' + line)
    entry = make_entry("it", {"file_name": "rows.jsonl", "formatting": "retrieval"}, str(tmp_path))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*({problem})"):
        tasks_of_entries([entry], None, False, 0, 42, HubOptions())
