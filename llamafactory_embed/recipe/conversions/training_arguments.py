"""The flags of transformers' Trainer, which all of these tools read, and LLaMA-Factory, too."""

from __future__ import annotations

from typing import Any

from .table import Flag, Settings, Values, computed, mapped, names_in, nothing, renamed, same


# Names and meanings are those of transformers 5.5, which the host reads.
SAME = names_in(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_kwargs optim
    optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps
    max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval tf32 gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode neftune_noise_alpha torch_empty_cache_steps logging_strategy
    logging_steps logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_private_repo hub_model_id hub_strategy hub_always_push
    hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout fsdp fsdp_config
    deepspeed debug skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint overwrite_output_dir
    lr_scheduler_type liger_kernel_config
    """
)

PLANNED = "the stages plan their batches before the training"
OWN_EVALUATION = "the stages evaluate by ranking, or by the loss of hidden tokens"
GONE = "gone from transformers 5"


def _checkpointing(value: Any, settings: Settings) -> Values:
    """LLaMA-Factory checkpoints activations unless told not to."""
    return {} if value else {"disable_gradient_checkpointing": True}


def _warmup(value: Any, settings: Settings) -> Values:
    """A number of steps, which a schedule without warm-up does not take."""
    return {} if settings.get("lr_scheduler_type") == "constant" else {"warmup_steps": value}


def _warmup_share(value: Any, settings: Settings) -> Values:
    """transformers 5 reads a share of all steps in the same option; a number of steps wins over it."""
    is_used = value and not settings.get("warmup_steps") and settings.get("lr_scheduler_type") != "constant"
    return {"warmup_steps": value} if is_used else {}


TRAINING_ARGUMENTS: tuple[Flag, ...] = (
    *same(*SAME),
    renamed("evaluation_strategy", "eval_strategy"),
    renamed("no_cuda", "use_cpu"),
    mapped("adafactor", "optim", {True: "adafactor"}),
    renamed("per_gpu_train_batch_size", "per_device_train_batch_size"),
    renamed("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    renamed(
        "use_liger_kernel", "enable_liger_kernel", "by the host's option, which reaches the model inside the stage's"
    ),
    computed(
        "gradient_checkpointing",
        ["disable_gradient_checkpointing"],
        _checkpointing,
        "on unless `disable_gradient_checkpointing: true`",
    ),
    computed("warmup_steps", ["warmup_steps"], _warmup, "as it is; a constant schedule takes none"),
    computed("warmup_ratio", ["warmup_steps"], _warmup_share, "a `warmup_steps` below 1 is a share of all steps"),
    *nothing("the loss of a step is the same on any number of devices", "average_tokens_across_devices"),
    *nothing("the columns of the rows are those of the stage", "remove_unused_columns", "label_names"),
    *nothing(PLANNED, "auto_find_batch_size", "group_by_length", "length_column_name", "train_sampling_strategy"),
    *nothing(PLANNED, "split_batches", "dispatch_batches", "sortish_sampler", "dataloader_persistent_workers"),
    *nothing(OWN_EVALUATION, "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
    *nothing(OWN_EVALUATION, "eval_accumulation_steps", "include_for_metrics", "include_inputs_for_metrics"),
    *nothing(OWN_EVALUATION, "batch_eval_metrics", "predict_with_generate", "generation_max_length"),
    *nothing(OWN_EVALUATION, "generation_num_beams", "generation_config", "include_tokens_per_second"),
    *nothing("the loss is the stage's own", "label_smoothing_factor", "use_cache"),
    *nothing("a secret has no place in a recipe: `hf auth login`, or HF_TOKEN", "hub_token", "push_to_hub_token"),
    *nothing("torchrun and LLaMA-Factory set it", "local_rank", "local-rank"),
    *nothing(f"{GONE}: the loggers know their folders", "logging_dir"),
    *nothing(f"{GONE}: weights are always saved as safetensors", "save_safetensors"),
    *nothing(
        GONE, "fp16_backend", "fp16_opt_level", "half_precision_backend", "sharded_ddp", "use_ipex", "jit_mode_eval"
    ),
    *nothing(GONE, "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "tpu_num_cores", "tpu_metrics_debug"),
    *nothing(GONE, "use_mps_device", "mp_parameters", "past_index", "ray_scope", "torchdynamo", "xpu_backend"),
    *nothing(
        GONE, "push_to_hub_model_id", "push_to_hub_organization", "eval_use_gather", "use_legacy_prediction_loop"
    ),
)
