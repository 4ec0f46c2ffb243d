"""JSON and YAML of a checkpoint: what says how it embeds, what its weights are called, what its adapter is."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_embed.cards.header import read_card_header
from llamafactory_embed.encoder.inspection import inspect_source
from llamafactory_embed.foreign import parse_yaml
from llamafactory_embed.loading.source import find_source
from llamafactory_embed.loading.weights import find_weight_files
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.model.mask_token import MaskedTokenRecord
from llamafactory_embed.model.quantization import QuantizationRanges
from llamafactory_embed.model.records import CheckpointRecord
from llamafactory_embed.train.embed.word_task.record import WordTaskRecord
from tests.embedders import make_config
from tests.hostile.strategies import BAD_YAML, changed, json_files, values, yaml_files
from tests.hostile.verdict import a_result_or_a_sentence, hostile


RECORDS: list[tuple[type[CheckpointRecord], dict[str, Any]]] = [
    (EmbeddingConfig, dataclasses.asdict(make_config())),
    (MaskedTokenRecord, dataclasses.asdict(MaskedTokenRecord("<mask>", 3, True))),
    (QuantizationRanges, dataclasses.asdict(QuantizationRanges({"16": [-1.0, 1.0]}, True, 10))),
    (
        WordTaskRecord,
        {name: "x" for name in ("word_task", "attention", "sliding_window", "retroactive_labels", "base_model")}
        | {"labels": ["a"], "merge_subwords": True, "space_before_words": True, "merged_adapters": []},
    ),
]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]
DENSE = {"in_features": 4, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"}
CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "model",
    "auto_mapping": {"base_model_class": "LlamaBiModel"},
}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(("kind", "good"), RECORDS, ids=lambda each: getattr(each, "__name__", ""))
def test_records_of_checkpoints(kind: type[CheckpointRecord], good: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / kind.file_name).write_text(json.dumps(good))
    kind.load(tmp_path)

    @hostile(30)
    @given(json_files(changed(good)))
    def read(content: bytes) -> None:
        (tmp_path / kind.file_name).write_bytes(content)
        with a_result_or_a_sentence(kind.file_name):
            kind.load(tmp_path)

    read()


sentence_transformers = st.fixed_dictionaries(
    {
        "config.json": st.just(json.dumps(CONFIG).encode()),
        "modules.json": st.just(json.dumps(MODULES).encode())
        | json_files(st.lists(st.one_of([changed(each) for each in MODULES]), max_size=4)),
        "1_Pooling/config.json": json_files(changed({"pooling_mode": "mean", "include_prompt": True})),
        "2_Dense/config.json": json_files(changed(DENSE)),
    },
    optional={
        "sentence_bert_config.json": json_files(changed({"max_seq_length": 64, "do_lower_case": True})),
        "config_sentence_transformers.json": json_files(
            changed({"prompts": {"query": "q: "}, "default_prompt_name": "query", "similarity_fn_name": "cosine"})
        ),
        "tokenizer_config.json": json_files(changed({"model_max_length": 64, "truncation_side": "right"})),
        "tokenizer.json": json_files(changed({"normalizer": {"type": "Lowercase"}})),
    },
)
llm2vec = st.fixed_dictionaries(
    {
        "adapter_config.json": json_files(changed(ADAPTER)),
        "config.json": json_files(changed(CONFIG)),
        "llm2vec_config.json": json_files(
            changed({"pooling_mode": "mean", "max_length": 8, "doc_max_length": 8, "skip_instruction": True})
        ),
    }
)


@hostile(30)
@given(sentence_transformers | llm2vec)
def test_folders_of_other_projects(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder, "checkpoint"), files)
        fill(Path(folder, "model"), {"config.json": json.dumps(CONFIG).encode()})
        with a_result_or_a_sentence("folders of other projects"):
            find_source(
                Path(folder, "checkpoint"), {"base_model": f"{folder}/model"} if "adapter_config.json" in files else {}
            )


@hostile(20)
@given(json_files(changed({"weight_map": {"a": "model.safetensors"}})), yaml_files)
def test_indexes_of_shards_and_cards(index: bytes, header: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, {"model.safetensors.index.json": index, "model.safetensors": b"", "config.json": index})
        (folder / "README.md").write_bytes(b"---\n" + header + b"\n---\n")
        with a_result_or_a_sentence("index of shards"):
            find_weight_files(folder)
        with a_result_or_a_sentence("model card"):
            read_card_header(folder)
        with a_result_or_a_sentence("inspect"):
            inspect_source(name)


@hostile(30)
@given(st.sampled_from(BAD_YAML) | st.text(max_size=20) | values.map(str))
def test_yaml_of_any_kind(text: str) -> None:
    with a_result_or_a_sentence("YAML"):
        parse_yaml(text)


def test_a_billion_laughs_cost_nothing() -> None:
    bombs = [BAD_YAML[0], BAD_YAML[0].replace("[", "{<<: [").replace("]", "]}").replace("x,x", "{a: 1}")]
    for bomb in bombs:
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"stand for more than 100,000 values|not valid YAML"):
            parse_yaml(bomb)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()
