"""Tevatron's command lines: `tevatron.retriever.driver.train` of version 2, with the flags of version 1."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, nothing, renamed, same
from .training_arguments import TRAINING_ARGUMENTS


POOLINGS = {"cls": "bos", "first": "bos", "mean": "mean", "avg": "mean", "eos": "eos", "last": "last"}


def data_name(value: Any) -> str:
    """A name for `dataset_info.json` from a hub name or path."""
    return str(value).rstrip("/").rpartition("/")[2].removesuffix(".jsonl").removesuffix(".json")


def _data_set(value: Any, settings: Settings) -> Values:
    """The data set; `json` is the loader of a local file, which `dataset_path` names."""
    return {} if value == "json" else {"dataset": data_name(value)}


def _pooling(value: Any, settings: Settings) -> Values:
    """With `append_eos_token` the last token is EOS."""
    is_eos = settings.get("append_eos_token") and value in ("last", "eos")
    return {"pooling": "eos"} if is_eos else {"pooling": POOLINGS[value]} if value in POOLINGS else {}


def _similarity(value: Any, settings: Settings) -> Values:
    """Normalized representations are compared by their cosine."""
    return {"similarity": "cosine"} if value else {"similarity": "dot", "normalize_embeddings": False}


def _chunk(value: Any, settings: Settings) -> Values:
    """Passages of a chunk, in tokens."""
    return {"grad_cache_tokens": value * settings.get("passage_max_len", 128)} if settings.get("grad_cache") else {}


def _implied(settings: Settings) -> Values:
    """What the program does without being asked."""
    values: Values = {"stage": "contrastive", "do_train": True, "attention": "causal", "contrastive_loss": "info_nce"}
    values |= {"cross_device_negatives": True, "dataset_dir": "data", "query_template": "{text}"}
    values |= _similarity(False, settings) | {"loss_temperature": 1.0, "num_negatives": 7, "pooling": "bos"}
    values |= {"query_max_length": 32, "document_max_length": 128, "cutoff_len": settings.get("passage_max_len", 128)}
    if not settings.get("lora"):
        return values | {"finetuning_type": "full"}
    values |= {"finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.1}
    return values | {"lora_target": "q_proj,k_proj,v_proj,o_proj,down_proj,up_proj,gate_proj"}


DESCRIBED = "describe the data in `data/dataset_info.json` (docs/data.md)"
ENCODING = "encoding is a call of its own: `Encoder`, or `llamafactory-embed eval`"

TEVATRON = Tool(
    key="tevatron",
    title="Tevatron",
    flags=(
        *TRAINING_ARGUMENTS,
        *same("model_name_or_path", "cache_dir", "lora_alpha", "lora_dropout"),
        mapped("lora", "finetuning_type", {True: "lora", False: "full"}),
        renamed("lora_name_or_path", "adapter_name_or_path"),
        renamed("lora_r", "lora_rank"),
        renamed("lora_target_modules", "lora_target"),
        computed("pooling", ["pooling"], _pooling, "`cls` → `bos`, `last` with `append_eos_token` → `eos`"),
        computed("append_eos_token", ["pooling"], lambda value, settings: {}, "`pooling: eos` appends it"),
        computed("normalize", ["similarity", "normalize_embeddings"], _similarity, "true: `cosine`, false: `dot`"),
        renamed("temperature", "loss_temperature"),
        renamed("distil_temperature", "teacher_temperature"),
        mapped("attn_implementation", "flash_attn",
               {"flash_attention_2": "fa2", "sdpa": "sdpa", "eager": "disabled"}),
        mapped("dtype", "bf16", {"bfloat16": True}),
        renamed("query_max_len", "query_max_length"),
        renamed("passage_max_len", "document_max_length", "also `cutoff_len`"),
        renamed("q_max_len", "query_max_length"),
        renamed("p_max_len", "document_max_length"),
        computed("train_group_size", ["num_negatives"], lambda value, settings: {"num_negatives": value - 1},
                 "one less: the positive is not counted"),
        computed("train_n_passages", ["num_negatives"], lambda value, settings: {"num_negatives": value - 1},
                 "one less: the positive is not counted"),
        computed("query_prefix", ["query_template"], lambda value, settings: {"query_template": f"{value}{{text}}"},
                 "the prefix and `{text}`"),
        computed("passage_prefix", ["document_template"],
                 lambda value, settings: {"document_template": f"{value}{{text}}"}, "the prefix and `{text}`"),
        computed("dataset_name", ["dataset"], _data_set, "a name in `data/dataset_info.json`"),
        computed("dataset_path", ["dataset"], lambda value, settings: {"dataset": data_name(value)},
                 "a name in `data/dataset_info.json`, whose `file_name` is the path"),
        renamed("num_proc", "preprocessing_num_workers"),
        computed("gc_p_chunk_size", ["grad_cache_tokens"], _chunk, "passages × `passage_max_len`, under `grad_cache`"),
        *nothing("`grad_cache_tokens` switches it on and sizes its chunks", "grad_cache", "gc_q_chunk_size"),
        *nothing("negatives cross devices unless `cross_device_negatives: false`", "negatives_x_device"),
        *nothing(DESCRIBED, "dataset_config", "dataset_split", "dataset_cache_dir", "corpus_name", "corpus_config",
                 "corpus_path", "corpus_split", "train_yaml", "assets_path", "dataset_number_of_shards",
                 "dataset_shard_index", "train_dir", "passage_field_separator"),
        *nothing("positives and negatives are drawn anew in each epoch", "positive_passage_no_shuffle",
                 "negative_passage_no_shuffle"),
        *nothing(ENCODING, "encode_is_query", "encode_output_path", "encode_use_pre_chunked", "encode_is_qry",
                 "encoded_save_path", "encode_in_path"),
        *nothing("texts only", "encode_text", "encode_image", "encode_audio", "encode_video"),
        *nothing("texts are packed, never padded", "pad_to_multiple_of", "padding_side"),
        *nothing("one vector a text; long texts are cut into chunks by `llamafactory-embed eval`",
                 "passage_chunk_size", "passage_chunk_size_range", "passage_chunk_size_variable"),
        *nothing("one encoder embeds queries and passages", "untie_encoder"),
        *nothing("a layer behind the pooling is `dense_sizes: [SIZE]` here, one for all texts",
                 "add_pooler", "projection_in_dim", "projection_out_dim"),
        *nothing("the model's configuration says what it is", "config_name", "tokenizer_name"),
    ),
    implied=_implied,
    remarks=("The data are described in `data/dataset_info.json`: docs/data.md.",),
)  # fmt: skip
