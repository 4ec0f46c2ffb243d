"""FlagEmbedding's command lines (1.3 and later, `FlagEmbedding.finetune.embedder.decoder_only` and `encoder_only`)."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, nothing, renamed, same
from .tevatron import DESCRIBED, data_name
from .training_arguments import TRAINING_ARGUMENTS


def _data_sets(value: Any, settings: Settings) -> Values:
    """One or several files or folders."""
    paths = value if isinstance(value, list) else str(value).split()
    return {"dataset": ", ".join(data_name(path) for path in paths)}


def _template(option: str) -> Any:
    """From "<instruct>{}\\n<query>{}" to a template: the instruction stands for its own place."""

    def convert(value: Any, settings: Settings) -> Values:
        text = str(value).replace("\\n", "\n")
        return (
            {option: text.replace("{}", "{instruction}", 1).replace("{}", "{text}", 1)}
            if text.count("{}") == 2
            else {}
        )

    return convert


def _similarity(value: Any, settings: Settings) -> Values:
    """Normalized embeddings are compared by their cosine."""
    return {"similarity": "cosine"} if value else {"similarity": "dot", "normalize_embeddings": False}


def _distillation(value: Any, settings: Settings) -> Values:
    """The teacher's scores are the `score` column."""
    return {"contrastive_loss": "kl_distillation"} if value else {}


def _implied(settings: Settings) -> Values:
    """What the program does without being asked."""
    values: Values = {"stage": "contrastive", "do_train": True, "attention": "causal", "contrastive_loss": "info_nce"}
    values |= {"dataset_dir": "data", "loss_temperature": 0.02, "num_negatives": 7, "cross_device_negatives": False}
    values |= {"similarity": "cosine", "pooling": "bos", "query_max_length": 32, "document_max_length": 128}
    values |= {"query_template": "{instruction}{text}", "cutoff_len": settings.get("passage_max_len", 128)}
    values |= {"task_batching": "homogeneous" if settings.get("same_dataset_within_batch") else "mixed"}
    if not settings.get("use_lora", True):
        return values | {"finetuning_type": "full"}
    values |= {"finetuning_type": "lora", "lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.1}
    return values | {"lora_target": "v_proj,q_proj,k_proj,gate_proj,down_proj,o_proj,up_proj"}


FLAG_EMBEDDING = Tool(
    key="flagembedding",
    title="FlagEmbedding",
    flags=(
        *TRAINING_ARGUMENTS,
        *same("model_name_or_path", "cache_dir", "trust_remote_code", "lora_rank", "lora_alpha", "lora_dropout"),
        renamed("peft_model_path", "adapter_name_or_path"),
        renamed("from_peft", "adapter_name_or_path"),
        mapped("use_lora", "finetuning_type", {True: "lora", False: "full"}),
        computed("target_modules", ["lora_target"], lambda value, settings:
                 {"lora_target": ",".join(value) if isinstance(value, list) else ",".join(str(value).split())},
                 "with commas"),
        renamed("modules_to_save", "additional_target"),
        mapped("use_flash_attn", "flash_attn", {True: "fa2"}),
        mapped("use_slow_tokenizer", "use_fast_tokenizer", {True: False, False: True}),
        renamed("additional_special_tokens", "add_special_tokens"),
        computed("train_data", ["dataset"], _data_sets, "names in `data/dataset_info.json`"),
        computed("train_group_size", ["num_negatives"], lambda value, settings: {"num_negatives": value - 1},
                 "one less: the positive is not counted"),
        renamed("query_max_len", "query_max_length"),
        renamed("passage_max_len", "document_max_length", "also `cutoff_len`"),
        renamed("max_example_num_per_dataset", "max_samples"),
        computed("query_instruction_format", ["query_template"], _template("query_template"),
                 "`{}` → `{instruction}`, then `{text}`"),
        computed("passage_instruction_format", ["document_template"], lambda value, settings:
                 _template("document_template")(value, settings) if settings.get("passage_instruction_for_retrieval")
                 else {}, "`{}` → `{instruction}`, then `{text}`"),
        computed("knowledge_distillation", ["contrastive_loss"], _distillation, "true: `kl_distillation`"),
        computed("same_dataset_within_batch", ["task_batching"], lambda value, settings:
                 {"task_batching": "homogeneous" if value else "mixed"}, "true: `homogeneous`, false: `mixed`"),
        renamed("negatives_cross_device", "cross_device_negatives"),
        renamed("temperature", "loss_temperature"),
        mapped("sentence_pooling_method", "pooling", {"cls": "bos", "mean": "mean", "last_token": "last"}),
        computed("normalize_embeddings", ["similarity", "normalize_embeddings"], _similarity,
                 "true: `cosine`, false: `dot`"),
        computed("sub_batch_size", ["max_tokens_per_batch"], lambda value, settings:
                 {"max_tokens_per_batch": value * settings.get("passage_max_len", 128)}, "texts × `passage_max_len`"),
        *nothing("the instruction of a data set stands in `data/dataset_info.json`",
                 "query_instruction_for_retrieval", "passage_instruction_for_retrieval"),
        *nothing("`contrastive_loss: kl_distillation` is the `kl_div` of these", "kd_loss_type"),
        *nothing(DESCRIBED, "cache_path", "small_threshold", "drop_threshold"),
        *nothing("texts stay as they are", "shuffle_ratio"),
        *nothing("texts are packed, never padded", "pad_to_multiple_of"),
        *nothing("decoders have no position embeddings", "fix_position_embedding"),
        *nothing("`llamafactory-embed export` merges", "save_merged_lora_model", "raw_peft"),
        *nothing("a secret has no place in a recipe: `hf auth login`, or HF_TOKEN", "token"),
        *nothing("the model's configuration says what it is", "config_name", "tokenizer_name"),
        *nothing("M3 trains dense, sparse and several vectors at once", "unified_finetuning",
                 "use_self_distill", "fix_encoder", "self_distill_start_step", "colbert_dim"),
    ),
    implied=_implied,
    remarks=("The data are described in `data/dataset_info.json`: docs/data.md.",),
)  # fmt: skip
