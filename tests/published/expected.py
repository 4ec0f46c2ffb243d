"""What the recipe files of the originals say, in the option names of ours.

Each function takes the settings of one file (`facts/*.json`) and returns the effective values that a recipe of ours
must have. What a file leaves out is the default of the original's program: the Trainer's (learning rate 5e-5, linear
schedule, three epochs, seed 42) or one of those named here.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any


Settings = Mapping[str, Any]
Values = dict[str, Any]

LORA_ALPHA_PER_RANK = 2
LORA_DROPOUT = 0.05  # LLM2Vec and the Diffusion Embedder; DiffuLLaMA: the host's 0
INFO_NCE_SCALE = 50.0  # HardNegativeNLLLoss of LLM2Vec

# How LLM2Vec wraps the texts of a chat model: (query, document); by a part of the model's name.
WRAPPED = {
    "Llama-2-7b-chat": ("[INST] {instruction}; {text} [/INST]", "[INST] {text} [/INST]"),
    "Mistral-7B-Instruct": ("[INST] {instruction}; {text} [/INST]", "[INST] {text} [/INST]"),
    "Meta-Llama-3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{instruction}; {text}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    ),
    "Qwen2.5-7B-Instruct": ("<|im_start|>user\n{instruction}; {text}<|im_end|>", "<|im_start|>user\n{text}<|im_end|>"),
    "Dream_emb": ("<|im_start|>user\n{instruction}; {text}<|im_end|>", "<|im_start|>user\n{text}<|im_end|>"),
    "dream": ("<|im_start|>user\n{instruction}; {text}<|im_end|>", "<|im_start|>user\n{text}<|im_end|>"),
    "Sheared-L": ("llm2vec_e5_data", "{text}"),
}

# The trainable pooling of Pooling-and-Attention.
LATENTS_OF_POOLING_AND_ATTENTION = {
    "latents": 768,
    "latent_heads": 32,
    "latent_head_size": 2048,
    "latents_init_std": 1.0,
}

E5_SETS = [
    "allnli",
    "dureader",
    "eli5_question_answer",
    "fever",
    "hotpot_qa",
    "miracl",
    "mrtydi",
    "msmarco_passage",
    "msmarco_document",
    "nq",
    "quora_duplicates",
    "squad",
    "t2ranking",
    "trivia_qa",
]
E5_SETS_OF_THE_DIFFUSION_EMBEDDER = [name for name in E5_SETS if name not in ("dureader", "t2ranking")]

# Folders of the authors' machines and what they hold.
LOCAL_FOLDERS = {
    "/home/siyue001/Projects/llm2vec_reason_dream/dream": "siyue/Dream_emb",
    "/home/siyue001/Projects/llm2vec_reason_dream/output/qwen/Qwen2.5-7B-Instruct-mntp/checkpoint-4000": (
        "siyue/LLM2Vec-Qwen2.5-7B-Instruct-mntp"
    ),
    "/home/toolkit/llm2vec/output/mntp/Meta-Llama-3.1-8B-Instruct/checkpoint-1000": "saves/llm2vec_llama3_1_mntp",
    "/home/maass/scripts/output/mntp/Sheared-LLaMA-1.3B/checkpoint-1000": "saves/llm2vec_sheared_llama_mntp",
}
# Repositories with code of their own that put an mntp adapter on a base model.
MNTP_REPOSITORIES = {
    "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp": "meta-llama/Llama-2-7b-chat-hf",
    "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp": "mistralai/Mistral-7B-Instruct-v0.2",
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp": "meta-llama/Meta-Llama-3-8B-Instruct",
    "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp": "princeton-nlp/Sheared-LLaMA-1.3B",
}


def base_and_adapters(settings: Settings, adapter_key: str) -> tuple[str, list[str]]:
    """The base model and the adapters on it; an mntp repository in place of a model is its base and its adapter."""
    name = LOCAL_FOLDERS.get(settings["model_name_or_path"], settings["model_name_or_path"])
    adapters = []
    if name in MNTP_REPOSITORIES:
        adapters.append(name)
        name = MNTP_REPOSITORIES[name]
    if adapter_key in settings:
        adapters.append(LOCAL_FOLDERS.get(settings[adapter_key], settings[adapter_key]))
    return name, adapters


def training_values(settings: Settings) -> Values:
    """The settings that mean the same in every original that uses transformers' Trainer."""
    values: Values = {
        "learning_rate": settings.get("learning_rate", 5e-5),
        "lr_scheduler_type": settings.get("lr_scheduler_type", "linear"),
        "warmup_steps": settings.get("warmup_steps", 0),
        "num_train_epochs": float(settings.get("num_train_epochs", 3)),
        "per_device_train_batch_size": settings.get("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": settings.get("gradient_accumulation_steps", 1),
        "save_steps": settings["save_steps"],
        "seed": settings.get("seed", 42),
        "stop_after_n_steps": settings.get("stop_after_n_steps"),
    }
    if "evaluation_strategy" in settings:
        values["eval_strategy"] = settings["evaluation_strategy"]
        values["eval_steps"] = settings["eval_steps"]
    if "per_device_eval_batch_size" in settings and values.get("eval_strategy"):
        values["per_device_eval_batch_size"] = settings["per_device_eval_batch_size"]
    if settings["lr_scheduler_type"] == "constant" if "lr_scheduler_type" in settings else False:
        values["warmup_steps"] = 0  # this schedule takes no warm-up, whatever the file names
    return values


def precision_values(settings: Settings) -> Values:
    backends = {"flash_attention_2": "fa2", "sdpa": "sdpa", "eager": "disabled"}
    values: Values = {}
    if settings.get("torch_dtype") == "bfloat16":
        values["bf16"] = True
    if "attn_implementation" in settings:
        values["flash_attn"] = backends[settings["attn_implementation"]]
    return values


def lora_values(settings: Settings) -> Values:
    rank = settings["lora_r"]
    return {
        "finetuning_type": "lora",
        "lora_rank": rank,
        "lora_alpha": LORA_ALPHA_PER_RANK * rank,
        "lora_dropout": LORA_DROPOUT,
        "lora_target": ["all"],
    }


def mntp(settings: Settings) -> Values:
    """LLM2Vec's first step."""
    return {
        "stage": "mntp",
        "model_name_or_path": settings["model_name_or_path"],
        "adapter_name_or_path": None,
        "dataset": ["wikitext_103"],
        "eval_dataset": ["wikitext_103_validation"],
        "cutoff_len": settings["max_seq_length"],
        "mask_token": settings["mask_token_type"],
        "masking": {"default": "bert", "all_mask": "all_mask"}[settings["data_collator_type"]],
        "mlm_probability": settings["mlm_probability"],
        **lora_values(settings),
        **training_values(settings),
        **precision_values(settings),
    }


def _embedder(settings: Settings) -> Values:
    model, adapters = base_and_adapters(settings, "peft_model_name_or_path")
    goes_on = len(adapters) > 1  # the second adapter goes on training; a first one alone is merged, and a new one made
    return {
        "stage": "contrastive",
        "model_name_or_path": model,
        "adapter_name_or_path": adapters or None,
        "create_new_adapter": bool(adapters) and not goes_on,
        "attention": "bidirectional",
        "pooling": settings["pooling_mode"],
        **lora_values(settings),
        **training_values(settings),
        **precision_values(settings),
    }


def _templates(model: str, has_instructions: bool = True) -> Values:
    query, document = next(pair for part, pair in WRAPPED.items() if part in model)
    return {"query_template": query if has_instructions else document, "document_template": document}


def simcse(settings: Settings) -> Values:
    """LLM2Vec's second step: a text is its own positive under dropout."""
    values = _embedder(settings)
    templates = _templates(values["model_name_or_path"], has_instructions=False)
    if "Sheared" in values["model_name_or_path"]:
        templates = {"document_template": "{text}"}  # texts as they are; no instruction comes in
    return (
        values
        | templates
        | {
            "dataset": ["wiki1m"],
            "num_negatives": 0,
            "cutoff_len": settings["max_seq_length"],
            "simcse_dropout": settings["simcse_dropout"],
            "contrastive_loss": "info_nce",
            "loss_temperature": 1 / settings["loss_scale"],
        }
    )


def supervised(settings: Settings) -> Values:
    """LLM2Vec's third step, and all embedders of the Diffusion Embedder."""
    values = _embedder(settings)
    values |= _templates(values["model_name_or_path"])
    values["skip_instruction"] = settings.get("skip_instruction", True)
    longest_document = settings.get("doc_max_length", settings["max_seq_length"])
    values |= {"query_max_length": settings["max_seq_length"], "document_max_length": longest_document}
    if settings.get("loss_class", "HardNegativeNLLLoss") == "RepllamaLoss":
        values |= {"contrastive_loss": "repllama", "scale_by_dim": settings["scale_by_dim"], "num_negatives": 15}
    else:
        values |= {"contrastive_loss": "info_nce", "loss_temperature": 1 / INFO_NCE_SCALE, "num_negatives": 1}
    return values | _rows(settings)


def _rows(settings: Settings) -> Values:
    """Which rows of which data the original's loaders take (README of the facts)."""
    e5 = [f"e5_{name}" for name in E5_SETS]
    match settings["dataset_name"]:
        case "E5" if "scale_by_dim" not in settings and settings["max_seq_length"] == 512:
            return {"dataset": e5, "max_samples": None}
        case "E5":
            return {"dataset": [f"e5_{name}" for name in E5_SETS_OF_THE_DIFFUSION_EMBEDDER], "max_samples": 8_000}
        case "MSMARCO":
            return {"dataset": ["msmarco_w_instructions"], "max_samples": 16_000}
        case "E5Mix":
            return {"dataset": ["theorem_aug"], "skip_bad_rows": True}
        case "ReasonIR":
            mixture = [f"e5_{name}[:3000]" for name in E5_SETS_OF_THE_DIFFUSION_EMBEDDER]
            return {"dataset": ["reasonir_hq_sample", "reasonir_vl_sample", *mixture]}  # 15,000 rows of each
        case "E5Custom":
            return {"dataset": [f"e5_{name}" for name in E5_SETS_OF_THE_DIFFUSION_EMBEDDER]}
    raise AssertionError(settings["dataset_name"])


def word_task(settings: Settings) -> Values:
    """A classifier on the states of words."""
    model, adapters = base_and_adapters(settings, "peft_addr")
    is_encoder = settings["model_class"] == "auto"
    column = {"pos_tags": "pos", "ner_tags": "ner"}[settings["task"]]
    if settings.get("dataset_config_name") == "en_ewt":
        column = "xpos"
    backbone = "full" if settings.get("full_fine_tune") or settings.get("unfrozen") else "frozen"
    values: Values = {
        "stage": "word-task",
        "model_name_or_path": model,
        "adapter_name_or_path": adapters or None,
        "dataset": ["ud_english_ewt" if settings.get("dataset_config_name") == "en_ewt" else "conll2003"],
        "word_task": column,
        "train_backbone": backbone,
        "merge_subwords": settings["merge_subwords"],
        "classifier_dropout": settings.get("classifier_dropout", 0.1),
        **training_values(settings),
    }
    if not is_encoder:
        values["attention"] = "bidirectional" if settings.get("bidirectional") else "causal"
        values["retroactive_labels"] = settings["retroactive_labels"]
    return values | precision_values(settings)


def shell_value(text: str, variables: Mapping[str, str]) -> Any:
    """A flag of a shell script with its variables put in: a number where it is one."""
    name = re.fullmatch(r"\$\{?(\w+)\}?", text)
    if name is not None:
        return shell_value(variables[name.group(1)], variables)
    quotient = re.fullmatch(r"\$\(\(([\w$/]+)\)\)", text)
    if quotient is not None:
        first, *divisors = [shell_value(part, variables) for part in quotient.group(1).split("/")]
        return functools.reduce(operator.floordiv, divisors, first)
    try:
        return float(text) if re.search(r"[.e]", text) else int(text)
    except ValueError:
        return text


def tdro(script: Mapping[str, Mapping[str, str]]) -> Values:
    """The three stages of tDRO: a reference, proxy and weights, an embedder by the weights."""
    flags = {name: shell_value(text, script["variables"]) for name, text in script["flags"].items()}
    finds_weights = "dro_type" in flags
    values: Values = {
        "stage": "tdro" if finds_weights else "contrastive",
        "model_name_or_path": flags["model_name_or_path"],
        "finetuning_type": "full",
        "attention": "causal",
        "pooling": "eos",
        "query_template": "e5",
        "query_max_length": flags["q_max_len"],
        "document_max_length": flags["p_max_len"],
        "num_negatives": flags["train_n_passages"] - 1,
        "loss_temperature": flags["temperature"],
        "similarity": {"cos_sim": "cosine"}[flags["score_function"]],
        "learning_rate": flags["learning_rate"],
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": flags["min_lr_ratio"]},
        "warmup_steps": flags["warmup_steps"],
        "max_steps": flags["max_steps"],
        "weight_decay": flags["weight_decay"],
        "per_device_train_batch_size": flags["per_device_train_batch_size"],
        "gradient_accumulation_steps": flags.get("gradient_accumulation_steps", 1),
        "logging_steps": flags["logging_steps"],
        "dataloader_num_workers": flags["dataloader_num_workers"],
        "seed": flags["seed"],
        "bf16": True,
    }
    if finds_weights:
        values |= {
            "tdro_lr": flags["reweight_eta"],
            "tdro_measure": "ratio",
            "tdro_clip": "norm",
            "tdro_max_grad": flags["dro_max_grad_norm"],
            "tdro_optimizer": flags["dro_optimizer"],
            "tdro_scheduler": flags["dro_lr_scheduler_type"],
            "tdro_in_batch_negatives": "dro_only_hn" not in flags,
            "tdro_normalize_on_update": "normalize_weights_on_every_update" in flags,
            "dataset_weights": "uniform",
        }
        is_constant = flags["dro_lr_scheduler_type"] == "constant"  # this schedule takes no warm-up and no minimum
        values["tdro_warmup_ratio"] = 0.0 if is_constant else flags["dro_warmup_ratio"]
        values["tdro_min_lr_ratio"] = 0.0 if is_constant else flags["dro_min_lr_ratio"]
    else:
        values |= {"task_batching": "homogeneous", "cross_device_negatives": True, "contrastive_loss": "info_nce"}
    return values


# What DiffuLLaMA's recipes name as the host does today.
SAME_NAME = [
    "model_name_or_path",
    "checkpoint_dir",
    "stage",
    "finetuning_type",
    "shift",
    "anneal_steps",
    "cutoff_len",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "max_grad_norm",
    "lora_rank",
    "bf16",
    "val_size",
    "diffusion_steps",
    "logits_temp",
]


def diffullama(settings: Settings) -> Values:
    """Recipes of DiffuLLaMA's fork of the host."""
    values = {name: settings[name] for name in SAME_NAME if name in settings}
    if "lora_target" in settings:
        values["lora_target"] = [settings["lora_target"]]
    if "additional_target" in settings:
        values["additional_target"] = [settings["additional_target"]]
    if settings["stage"] == "ddm-sft":
        values["ddm_format"] = "diffuseq"
        is_gpt2 = "gpt2" in settings["model_name_or_path"]
        values["ddm_split_digits"] = is_gpt2  # its wrapper of the tokenizer; Llama 2's splits digits by itself
        # Its loader sets these tokens; GPT-2's padding is a single byte, which no text becomes.
        values["ddm_separator"], values["ddm_padding"] = ("======", "101") if is_gpt2 else ("4936", "30399")
    if "deepspeed" in settings:
        values["deepspeed"] = settings["deepspeed"]
    if "lr_scheduler_type" not in settings and "learning_rate" in settings:
        values["lr_scheduler_type"] = "linear"
    if "do_predict" in settings:
        is_unconditional = settings["stage"] == "ddm"
        values["predict_task"] = "unconditional" if is_unconditional else "prompt"
        if is_unconditional:  # its sampler keeps a token by chance, after a cut of the least probable ones
            values |= {"sampling_algorithm": "random_keep", "top_p": 0.9, "max_new_tokens": settings["cutoff_len"]}
    return values


def pooling_and_attention(settings: Settings) -> Values:
    """The adapter that all five designs share."""
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj"}
    assert set(settings["target_modules"]) == projections  # all linear layers of its model
    return {
        "stage": "contrastive",
        "finetuning_type": "lora",
        "lora_rank": settings["r"],
        "lora_alpha": settings["lora_alpha"],
        "lora_dropout": settings["lora_dropout"],
        "lora_target": ["all"],
    }


def latent_pooling_and_attention(settings: Settings) -> Values:
    """Designs 2 to 5, which pool by latents; what the program fixes is in none of its files."""
    return pooling_and_attention(settings) | LATENTS_OF_POOLING_AND_ATTENTION


TRANSLATORS: dict[str, Callable[[Any], Values]] = {
    "mntp": mntp,
    "simcse": simcse,
    "supervised": supervised,
    "word-task": word_task,
    "tdro": tdro,
    "diffullama": diffullama,
    "pooling-and-attention": pooling_and_attention,
    "latent-pooling-and-attention": latent_pooling_and_attention,
}
