"""DiffuLLaMA: the recipes of its fork of LLaMA-Factory (YAML), and the command line of its training program."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, names_in, nothing, renamed, same
from .training_arguments import TRAINING_ARGUMENTS


HOSTS_OWN = names_in(
    """
    model_name_or_path adapter_name_or_path checkpoint_dir stage finetuning_type shift anneal_steps cutoff_len
    dataset eval_dataset dataset_dir template streaming mix_strategy interleave_probs max_samples
    tokenized_path overwrite_cache preprocessing_num_workers plot_loss print_param_status lora_rank lora_alpha
    lora_dropout lora_target additional_target flash_attn diffusion_steps logits_temp buffer_size
    """
)


def _is_program(settings: Settings) -> bool:
    """Whether these are the flags of the training program, not a recipe of the fork."""
    return "stage" not in settings


def _separator(settings: Settings) -> Values:
    """The tokens that its loader sets. GPT-2's tokenizer is wrapped, too, and reads every digit by itself."""
    is_gpt2 = "gpt2" in str(settings.get("model_name_or_path", ""))
    if is_gpt2:
        return {"ddm_split_digits": True, "ddm_separator": "======", "ddm_padding": "101"}
    return {"ddm_split_digits": False, "ddm_separator": "4936", "ddm_padding": "30399"}


def _count_of_texts(value: Any, settings: Settings) -> Values:
    """Under `do_predict` it is the number of texts to write."""
    if settings.get("do_predict") and value:
        return {"eval_dataset": settings.get("eval_dataset", settings.get("dataset")), "max_samples": value}
    return {"val_size": value}


def _implied(settings: Settings) -> Values:
    """What the two programs do without being asked."""
    if _is_program(settings):
        values: Values = {"stage": "ddm", "do_train": True, "finetuning_type": "full", "shift": True}
        values |= {"lr_scheduler_type": "constant", "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95}
        return values | {"loss_norm": "masked", "bf16": True, "dataset_dir": "data"}
    values = {"stage": settings["stage"]}
    if settings["stage"] == "ddm-sft":
        values |= {"ddm_format": "diffuseq"} | _separator(settings)
    if settings.get("do_predict"):
        is_unconditional = settings["stage"] == "ddm"
        values["predict_task"] = "unconditional" if is_unconditional else "prompt"
        if is_unconditional:
            values |= {"sampling_algorithm": "random_keep", "top_p": 0.9, "max_new_tokens": settings["cutoff_len"]}
    return values


DIFFULLAMA = Tool(
    key="diffullama",
    title="DiffuLLaMA",
    flags=(
        *TRAINING_ARGUMENTS,
        *same(*HOSTS_OWN),
        computed("packing", ["packing"], lambda value, settings: {} if value else {"packing": False},
                 "on unless `packing: false`; where a recipe says `true`, the host takes a token off `cutoff_len`"),
        computed("val_size", ["val_size", "max_samples", "eval_dataset"], _count_of_texts,
                 "under `do_predict`: `max_samples` of `eval_dataset`"),
        # The training program.
        renamed("model", "model_name_or_path"),
        renamed("batch_size", "per_device_train_batch_size"),
        renamed("gradient_accumulate_every", "gradient_accumulation_steps"),
        renamed("max_train_steps", "max_steps"),
        renamed("seq_length", "cutoff_len"),
        computed("wandb", ["report_to", "run_name"], lambda value, settings:
                 {"report_to": "wandb", "run_name": value}, "the run's name at wandb"),
        *nothing("rotary frequencies are the model's own", "rope_theta"),
        *nothing("data parallel; longer texts are not split over devices", "parallel_mode"),
        *nothing("accelerate's: `deepspeed: examples/deepspeed/ds_z3_config.json`", "config_file"),
        *nothing("torchrun's: `FORCE_TORCHRUN=1`, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT", "num_machines",
                 "num_processes", "machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"),
    ),
    implied=_implied,
    remarks=("Documents do not see one another, and the mask is a token of its own.",),
)  # fmt: skip
