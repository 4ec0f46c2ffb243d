"""ms-swift's embedding training (`swift sft --task_type embedding`), as a command line or its `args.json`, with the
environment variables of its InfoNCE."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, nothing, renamed, same
from .tevatron import DESCRIBED, data_name
from .training_arguments import TRAINING_ARGUMENTS


TUNERS = ("train_type", "tuner_type", "sft_type")
LOSSES = {"infonce": "info_nce"}


def _names(value: Any) -> list[str]:
    """Values of a flag that takes several."""
    return [str(each) for each in value] if isinstance(value, list) else str(value).split()


def _data_sets(option: str) -> Any:
    """Names, and counts of rows as parts of data sets: `path#1000` is `name[:1000]`."""

    def convert(value: Any, settings: Settings) -> Values:
        shown = []
        for each in _names(value):
            path, _, count = each.partition("#")
            shown.append(data_name(path.partition(":")[0]) + (f"[:{count}]" if count else ""))
        return {option: ", ".join(shown)}

    return convert


def _engine(value: Any, settings: Settings) -> Values:
    """DeepSpeed's files, which ms-swift names by their stage."""
    files = {"zero2": "examples/deepspeed/ds_z2_config.json", "zero3": "examples/deepspeed/ds_z3_config.json"}
    return {"deepspeed": files.get(value, value)}


def _in_order(value: Any, settings: Settings) -> Values:
    """Rows are shuffled unless a recipe says otherwise."""
    return {} if value else {"disable_shuffling": True}


def _margin(value: Any, settings: Settings) -> Values:
    """Negatives that are too similar are left out if asked."""
    return {"false_negative_margin": settings.get("INFONCE_FAKE_NEG_MARGIN", 0.1)} if value else {}


def _targets(value: Any, settings: Settings) -> Values:
    """Names with commas."""
    return {"lora_target": ",".join("all" if name == "all-linear" else name for name in _names(value))}


def _implied(settings: Settings) -> Values:
    """What `swift sft` does without being asked."""
    if settings.get("task_type", "embedding") != "embedding":
        raise ValueError(
            f"`--task_type {settings['task_type']}` trains no embedder: only `--task_type embedding` is converted."
        )
    tuner = next((settings[name] for name in TUNERS if name in settings), "lora")
    values: Values = {"stage": "contrastive", "do_train": True, "finetuning_type": tuner, "attention": "causal"}
    values |= {"pooling": "eos", "similarity": "cosine", "contrastive_loss": "info_nce", "loss_temperature": 0.1}
    values |= {"query_template": "{instruction} {text}", "dataset_dir": "data", "lr_scheduler_type": "cosine"}
    values |= {"learning_rate": 1e-4 if tuner == "lora" else 1e-5, "weight_decay": 0.1, "adam_beta2": 0.95}
    values |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "task_batching": "mixed"}
    if tuner == "lora":
        values |= {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target": "all"}
    return values


IMAGES = "texts only"

MS_SWIFT = Tool(
    key="ms-swift",
    title="ms-swift",
    flags=(
        *TRAINING_ARGUMENTS,
        renamed("model", "model_name_or_path"),
        computed("adapters", ["adapter_name_or_path"],
                 lambda value, settings: {"adapter_name_or_path": ",".join(_names(value))}, "with commas"),
        *(mapped(name, "finetuning_type", {"lora": "lora", "full": "full"}) for name in TUNERS),
        mapped("loss_type", "contrastive_loss", LOSSES, "`infonce` → `info_nce`"),
        *same("model_revision", "rope_scaling", "streaming", "lora_rank", "lora_alpha", "lora_dropout", "use_dora",
              "use_rslora", "use_galore", "galore_rank"),
        renamed("lorap_lr_ratio", "loraplus_lr_ratio"),
        computed("target_modules", ["lora_target"], _targets, "with commas; `all-linear` → `all`"),
        computed("modules_to_save", ["additional_target"],
                 lambda value, settings: {"additional_target": ",".join(_names(value))}, "with commas"),
        mapped("torch_dtype", "bf16", {"bfloat16": True}),
        mapped("attn_impl", "flash_attn", {"sdpa": "sdpa", "eager": "disabled", "flash_attn": "fa2",
                                           "flash_attention_2": "fa2"}),
        mapped("quant_bits", "quantization_bit", {4: 4, 8: 8}),
        mapped("quant_method", "quantization_method", {"bnb": "bnb", "hqq": "hqq", "eetq": "eetq"}),
        renamed("bnb_4bit_quant_type", "quantization_type"),
        renamed("bnb_4bit_use_double_quant", "double_quantization"),
        computed("dataset", ["dataset"], _data_sets("dataset"), "names; `path#1000` → `name[:1000]`"),
        computed("val_dataset", ["eval_dataset"], _data_sets("eval_dataset"), "names; `path#1000` → `name[:1000]`"),
        renamed("split_dataset_ratio", "val_size"),
        renamed("dataset_num_proc", "preprocessing_num_workers"),
        renamed("max_length", "cutoff_len"),
        computed("deepspeed", ["deepspeed"], _engine, "`zero2`, `zero3` → files of `examples/deepspeed`"),
        computed("train_dataloader_shuffle", ["disable_shuffling"],
                 _in_order, "false: `disable_shuffling: true`"),
        computed("dataset_shuffle", ["disable_shuffling"],
                 _in_order, "false: `disable_shuffling: true`"),
        computed("strict", ["skip_bad_rows"], lambda value, settings: {"skip_bad_rows": not value}, "its contrary"),
        renamed("INFONCE_TEMPERATURE", "loss_temperature"),
        renamed("INFONCE_HARD_NEGATIVES", "num_negatives"),
        computed("INFONCE_MASK_FAKE_NEGATIVE", ["false_negative_margin"], _margin, "the margin, where it is on"),
        *nothing("`false_negative_margin`, where the mask is on", "INFONCE_FAKE_NEG_MARGIN"),
        *nothing("other rows are negatives under info_nce", "INFONCE_USE_BATCH"),
        *nothing("queries among themselves, and documents, are no candidates", "INFONCE_INCLUDE_QQ",
                 "INFONCE_INCLUDE_DD"),
        *nothing("the stage says what is trained", "task_type", "num_labels", "problem_type"),
        *nothing("texts are written by `query_template` and `document_template`", "template", "system",
                 "use_chat_template", "template_backend", "response_prefix", "agent_template", "norm_bbox"),
        *nothing("too long texts are cut off; instruction and template stay", "truncation_strategy"),
        *nothing("texts are always packed, never padded", "padding_free", "packing", "padding_side"),
        *nothing("the loss is the stage's own", "loss_scale", "router_aux_loss_coef", "enable_dft_loss",
                 "enable_channel_loss"),
        *nothing("stop with `stop_after_n_steps` or `max_steps`", "max_epochs"),
        *nothing("`resume_from_checkpoint` continues a whole run", "resume_only_model"),
        *nothing(DESCRIBED, "columns", "custom_dataset_info", "custom_register_path", "cached_dataset",
                 "interleave_prob", "stopping_strategy", "shuffle_buffer_size", "val_dataset_shuffle", "download_mode",
                 "load_from_cache_file", "model_name", "model_author"),
        *nothing("the model's configuration says what it is", "model_type", "max_model_len", "init_strategy",
                 "model_kwargs", "new_special_tokens", "local_repo_path"),
        *nothing("torchrun spreads a run over devices", "device_map", "max_memory", "sequence_parallel_size",
                 "zero_hpz_partition_size", "deepspeed_autotp_size", "use_ray", "ray_exp_name", "device_groups"),
        *nothing("models come from Hugging Face, or from ModelScope with USE_MODELSCOPE_HUB=1", "use_hf"),
        *nothing(IMAGES, "max_pixels", "freeze_llm", "freeze_vit", "freeze_aligner", "vit_lr", "aligner_lr",
                 "vit_gradient_checkpointing"),
        *nothing("not supported by LLaMA-Factory", "target_regex", "target_parameters", "init_weights", "lora_bias",
                 "lora_dtype", "freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio",
                 "trainable_parameters", "trainable_parameters_regex", "hqq_axis", "bnb_4bit_compute_dtype",
                 "bnb_4bit_quant_storage", "tuner_backend", "lisa_activated_layers", "lisa_step_interval"),
        *nothing("ms-swift's own", "external_plugins", "load_args", "load_data_args", "ignore_args_error", "config",
                 "add_version", "create_checkpoint_symlink", "swift_version", "ckpt_dir", "logprobs", "stream"),
        *nothing("how many processes: torchrun's, `FORCE_TORCHRUN=1`", "NPROC_PER_NODE", "NNODES", "NODE_RANK",
                 "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT"),
    ),
    implied=_implied,
    remarks=(
        "ms-swift chooses `gradient_accumulation_steps` so that an update has 16 rows, unless the command says it.",
        "The data are described in `data/dataset_info.json`: docs/data.md.",
    ),
)  # fmt: skip
