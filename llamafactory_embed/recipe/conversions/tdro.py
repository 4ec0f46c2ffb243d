"""tDRO's shell scripts: the baseline, the weights of the tasks, and the embedder trained by them."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, names_in, nothing, renamed, same
from .training_arguments import TRAINING_ARGUMENTS


TASKS = names_in(
    """
    agnews AllNLI altlex amazon_review_2018_1m cnn_dailymail codesearchnet dureader eli5_question_answer gooaq_pairs
    hotpotqa medmcqa miracl mr_tydi_combined msmarco nq quora_duplicates_triplets searchQA_top5_snippets
    sentence-compression SimpleWiki squad_pairs stackexchange_duplicate_questions_title-body_title-body t2ranking
    trivia xsum yahoo_answers_title_answer
    """
)
POOLINGS = {"lasttoken": "eos", "mean": "mean", "cls": "bos"}
SPARSE = names_in(
    """
    hybrid_use_dense_vector hybrid_use_sparse_vector sparse_use_relu sparse_use_log_saturation sparse_use_logsumexp
    sparse_use_mean_aggregation sparse_min_tokens_to_keep sparse_top_p_qry sparse_top_p_psg sparse_top_k_qry
    sparse_top_k_psg sparse_use_adaptive_top_k sparse_expansion_ratio_qry sparse_expansion_ratio_psg
    sparse_pool_from_input_ids sparse_select_top_rank_basis sparse_basis_top_k sparse_basis_use_largest
    sparse_basis_use_smallest add_flops add_vector_norm norm_ord q_norm_loss_factor p_norm_loss_factor
    """
)


def _finds_weights(settings: Settings) -> bool:
    """Whether the script is the one that learns the weights of the tasks."""
    return any(name.startswith("dro_") or name == "reweight_eta" for name in settings)


def _weights(value: Any, settings: Settings) -> Values:
    """The authors' uniform weights are a word here; their other files are read as they are."""
    return {"dataset_weights": "uniform" if "uniform" in str(value) else value}


def _schedule(value: Any, settings: Settings) -> Values:
    """A cosine that ends above 0."""
    if value == "cosine" and settings.get("min_lr_ratio"):
        rate = {"min_lr_rate": settings["min_lr_ratio"]}
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": rate}
    return {"lr_scheduler_type": value}


def _chunk(value: Any, settings: Settings) -> Values:
    """Passages of a chunk, in tokens."""
    return {"grad_cache_tokens": value * settings.get("p_max_len", 512)} if settings.get("grad_cache") else {}


def _batching(value: Any, settings: Settings) -> Values:
    """The script that learns weights mixes tasks by nature."""
    return {} if _finds_weights(settings) else {"task_batching": "homogeneous" if value else "mixed"}


def _across_devices(value: Any, settings: Settings) -> Values:
    """tDRO's proxy compares within a process."""
    return {} if _finds_weights(settings) else {"cross_device_negatives": bool(value)}


def _share_of_updates(name: str) -> Any:
    """A constant schedule of the weights takes neither warm-up nor minimum."""

    def convert(value: Any, settings: Settings) -> Values:
        return {} if settings.get("dro_lr_scheduler_type", "constant") == "constant" else {name: value}

    return convert


def _prompt(value: Any, settings: Settings) -> Values:
    """Whether queries are written with their instruction."""
    return {"query_template": settings.get("prompt_type", "e5") if value else "{text}"}


def _implied(settings: Settings) -> Values:
    """What the programs do without being asked."""
    values: Values = {"stage": "tdro" if _finds_weights(settings) else "contrastive", "do_train": True}
    values |= {"finetuning_type": "lora" if settings.get("lora") else "full", "attention": "causal"}
    values |= {"similarity": "cosine", "query_template": "{text}", "loss_temperature": 1.0, "num_negatives": 7}
    values |= {"dataset_dir": "data", "dataset": ", ".join(f"tdro_{task}" for task in TASKS)}
    if not _finds_weights(settings):
        return values | _batching(False, settings) | _across_devices(False, settings)
    minus, ratio = map(settings.get, ("group_loss_minus_ref_loss", "normalize_group_loss_scale_with_ref_loss"))
    measure = {(True, True): "relative_difference", (True, False): "difference", (False, True): "ratio"}
    values["tdro_measure"] = measure.get((bool(minus), bool(ratio)), "loss")
    clips = {"dro_apply_grad_norm": "norm", "dro_apply_grad_clip": "value"}
    values["tdro_clip"] = next((kind for flag, kind in clips.items() if settings.get(flag)), "none")
    values["tdro_in_batch_negatives"] = not settings.get("dro_only_hn", False)
    values["tdro_normalize_on_update"] = bool(settings.get("normalize_weights_on_every_update"))
    return values | {"tdro_lr": 0.25}


CODE = "the whole command says it: see `stage`, `tdro_measure`, `tdro_clip` and `tdro_in_batch_negatives`"
ENCODING = "encoding and evaluation are commands of their own: `llamafactory-embed eval`"
LAUNCHER = "torchrun's: `FORCE_TORCHRUN=1`, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT"

TDRO = Tool(
    key="tdro",
    title="tDRO",
    flags=(
        *TRAINING_ARGUMENTS,
        computed("lr_scheduler_type", ["lr_scheduler_type", "lr_scheduler_kwargs"], _schedule,
                 "a cosine with `min_lr_ratio` → `cosine_with_min_lr`"),
        computed("min_lr_ratio", ["lr_scheduler_kwargs"], lambda value, settings: {}, "`{min_lr_rate: …}`"),
        *same("model_name_or_path", "cache_dir", "use_fast_tokenizer", "overwrite_cache", "lora_dropout",
              "lora_alpha"),
        renamed("lora_r", "lora_rank"),
        mapped("lora", "finetuning_type", {True: "lora", False: "full"}),
        mapped("attn_implementation", "flash_attn",
               {"flash_attention_2": "fa2", "sdpa": "sdpa", "eager": "disabled"}),
        renamed("q_max_len", "query_max_length"),
        computed("p_max_len", ["document_max_length", "cutoff_len"],
                 lambda value, settings: {"document_max_length": value, "cutoff_len": value}, "also `cutoff_len`"),
        computed("train_n_passages", ["num_negatives"], lambda value, settings: {"num_negatives": value - 1},
                 "one less: the positive is not counted"),
        mapped("pooling_strategy", "pooling", POOLINGS),
        mapped("score_function", "similarity", {"cos_sim": "cosine", "dot": "dot"}),
        renamed("temperature", "loss_temperature"),
        computed("add_prompt", ["query_template"], _prompt, "`query_template: e5`"),
        computed("prompt_type", ["query_template"], lambda value, settings: {}, "the template's name, or its text"),
        computed("domain_config_path", ["dataset_weights"], _weights, "`uniform`, or the file as it is"),
        computed("homogenous_batch", ["task_batching"], _batching, "true: `homogeneous`, else `mixed`"),
        computed("negatives_x_device", ["cross_device_negatives"], _across_devices, "as it is"),
        computed("gc_p_chunk_size", ["grad_cache_tokens"], _chunk, "passages × `p_max_len`, under `grad_cache`"),
        *nothing("`grad_cache_tokens` switches it on and sizes its chunks", "grad_cache", "gc_q_chunk_size",
                 "grad_cache_ac", "no_sync_except_last", "dynamic_subbatch_forward"),
        renamed("ref_model_name_or_path", "ref_model"),
        renamed("reweight_eta", "tdro_lr"),
        renamed("ema", "tdro_ema"),
        renamed("p_norm_of_ref_loss", "tdro_norm"),
        renamed("dro_optimizer", "tdro_optimizer"),
        renamed("dro_weight_decay", "tdro_weight_decay"),
        computed("dro_epsilon", ["tdro_epsilon"], lambda value, settings:
                 {} if settings.get("dro_optimizer", "sgd") == "sgd" else {"tdro_epsilon": value}, "not of sgd"),
        computed("dro_adam_beta1", ["tdro_beta1"], lambda value, settings:
                 {"tdro_beta1": value} if settings.get("dro_optimizer") == "adamw" else {}, "of adamw"),
        computed("dro_adam_beta2", ["tdro_beta2"], lambda value, settings:
                 {"tdro_beta2": value} if settings.get("dro_optimizer") == "adamw" else {}, "of adamw"),
        renamed("dro_max_grad_norm", "tdro_max_grad"),
        renamed("dro_lr_scheduler_type", "tdro_scheduler"),
        computed("dro_warmup_ratio", ["tdro_warmup_ratio"], _share_of_updates("tdro_warmup_ratio"),
                 "a constant schedule takes none"),
        computed("dro_warmup_steps", ["tdro_warmup_steps"], _share_of_updates("tdro_warmup_steps"),
                 "a constant schedule takes none"),
        computed("dro_min_lr_ratio", ["tdro_min_lr_ratio"], _share_of_updates("tdro_min_lr_ratio"),
                 "a constant schedule takes none"),
        renamed("dro_save_top_percent_uniform_weights", "tdro_top_percents"),
        *nothing(CODE, "dro_type", "group_loss_minus_ref_loss", "normalize_group_loss_scale_with_ref_loss",
                 "normalize_weights_on_every_update", "dro_only_hn", "dro_apply_grad_norm", "dro_apply_grad_clip",
                 "weight_ema", "loss_reduction", "normalize"),
        *nothing("its smoothing is torch's default", "dro_rmsprop_alpha"),
        *nothing("`contrastive_loss: kl_distillation`, or `kl_weight` beside info_nce", "distillation", "clloss_coef"),
        *nothing("the weights draw rows, they do not scale losses: `dataset_weights`", "loss_scaling_dro_weights"),
        *nothing("data are named by `dataset` and described in `data/dataset_info.json`", "preprocessed_dir",
                 "query_collection", "passage_collection", "corpus_path", "dev_path", "domain_config", "epoch",
                 "domain_weights", "n_groups", "domain_to_idx", "domain_size", "add_domain_id", "add_domain_name"),
        *nothing("every row has its data set's instruction", "add_prompt_prob", "encoding_task_name"),
        *nothing("a task that is drawn out starts again", "stopping_strategy"),
        *nothing("positives and negatives are drawn anew in each epoch", "positive_passage_no_shuffle",
                 "negative_passage_no_shuffle", "eval_n_passages"),
        *nothing("texts are packed, never padded", "pad_to_max_length", "pad_to_multiple_of", "cumulative_seq"),
        *nothing("one encoder embeds queries and passages", "untie_encoder", "model_name_or_path_qry",
                 "model_name_or_path_psg", "pooling_strategy_qry", "pooling_strategy_psg",
                 "num_layers_for_query_model"),
        *nothing("a layer behind the pooling is `dense_sizes: [SIZE]` here, one for all texts",
                 "add_pooler", "projection_in_dim", "projection_out_dim",
                 "projection_in_dim_qry", "projection_out_dim_qry", "projection_in_dim_psg", "projection_out_dim_psg"),
        *nothing("sparse embeddings are not trained here", *SPARSE),
        *nothing("the model's configuration says what it is", "model_type", "config_name", "tokenizer_name"),
        *nothing("`llamafactory-cli` logs to the terminal and to `output_dir`", "logging_path"),
        *nothing(ENCODING, "qrel_path", "encoded_save_prefix", "encode_is_qry", "task_type", "task_name", "batch_size",
                 "lang", "eval_all_langs"),
        *nothing(LAUNCHER, "num_machines", "num_processes", "machine_rank", "main_process_ip", "main_process_port",
                 "master_addr", "master_port", "nnodes", "node_rank", "nproc_per_node"),
        *nothing("accelerate's: `deepspeed: examples/deepspeed/…`, or docs/recipes.md for FSDP", "config_file"),
    ),
    implied=_implied,
)  # fmt: skip
