"""LLM2Vec's JSON files and those of the Diffusion Embedder, which continues its programs: masked next-token
prediction, SimCSE, supervised training and word tasks."""

from __future__ import annotations

from typing import Any

from .table import Settings, Tool, Values, computed, mapped, nothing, renamed, same
from .training_arguments import TRAINING_ARGUMENTS


# Repositories whose own code puts the adapter of masked next-token prediction on a base model.
BASES = {
    "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp": "meta-llama/Llama-2-7b-chat-hf",
    "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp": "mistralai/Mistral-7B-Instruct-v0.2",
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp": "meta-llama/Meta-Llama-3-8B-Instruct",
    "McGill-NLP/LLM2Vec-Meta-Llama-31-8B-Instruct-mntp": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp": "princeton-nlp/Sheared-LLaMA-1.3B",
}
_LLAMA_2 = ("[INST] {instruction}; {text} [/INST]", "[INST] {text} [/INST]")
_LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n"
_CHAT_ML = ("<|im_start|>user\n{instruction}; {text}<|im_end|>", "<|im_start|>user\n{text}<|im_end|>")
# How the texts of a chat model are wrapped, query and document, by a part of the model's name.
WRAPPED = {
    "Llama-2-7b-chat": _LLAMA_2,
    "Mistral-7B-Instruct": _LLAMA_2,
    "Meta-Llama-3": (f"{_LLAMA_3}{{instruction}}; {{text}}<|eot_id|>", f"{_LLAMA_3}{{text}}<|eot_id|>"),
    "Qwen2": _CHAT_ML,
    "Dream": _CHAT_ML,
    "dream": _CHAT_ML,
}
PLAIN = ("llm2vec_e5_data", "{text}")

E5 = (
    *("e5_allnli", "e5_dureader", "e5_eli5_question_answer", "e5_fever", "e5_hotpot_qa", "e5_miracl", "e5_mrtydi"),
    *("e5_msmarco_passage", "e5_msmarco_document", "e5_nq", "e5_quora_duplicates", "e5_squad", "e5_t2ranking"),
    "e5_trivia_qa",
)
# The Diffusion Embedder leaves the two Chinese sets out.
E5_ENGLISH = tuple(name for name in E5 if name not in ("e5_dureader", "e5_t2ranking"))
WORD_COLUMNS = {"pos_tags": "pos", "ner_tags": "ner", "chunk_tags": "chunk"}
KINDS = {
    "mntp": ("mask_token_type", "mlm_probability", "data_collator_type"),
    "simcse": ("simcse_dropout",),
    "word-task": ("task", "model_class", "retroactive_labels", "merge_subwords", "classifier_dropout"),
}


def _kind_of(settings: Settings) -> str:
    """Which of the four programs reads these settings."""
    if "domain" in settings or "aug_file_path" in settings:  # of the Diffusion Embedder, whose `task` is another
        return "supervised"
    return next((kind for kind, names in KINDS.items() if any(name in settings for name in names)), "supervised")


def _model_and_adapters(settings: Settings) -> Values:
    """The base model and the adapters on it: the first one is merged, a second one goes on training."""
    name = settings.get("model_name_or_path", "")
    adapters = [name] if name in BASES else []
    adapters += [settings[key] for key in ("peft_model_name_or_path", "peft_addr") if settings.get(key)]
    values: Values = {"model_name_or_path": BASES.get(name, name)}
    if settings.get("full_fine_tune"):
        return values  # starts from whole weights: the adapters have to be merged before
    if adapters:
        values["adapter_name_or_path"] = ",".join(adapters)
        if _kind_of(settings) in ("simcse", "supervised") and len(adapters) == 1:
            values["create_new_adapter"] = True
    return values


def _adapter(value: Any, settings: Settings) -> Values:
    """The adapters, where they can be loaded."""
    return {name: each for name, each in _model_and_adapters(settings).items() if name != "model_name_or_path"}


def _templates(settings: Settings) -> Values:
    """How texts are written. SimCSE's texts have no instruction."""
    model = str(_model_and_adapters(settings)["model_name_or_path"])
    query, document = next((pair for part, pair in WRAPPED.items() if part in model), PLAIN)
    if _kind_of(settings) == "simcse":
        query = document
    return {"query_template": query, "document_template": document}


def _longest_text(value: Any, settings: Settings) -> Values:
    """Queries and documents of supervised training have lengths of their own."""
    values: Values = {"cutoff_len": value}
    if "doc_max_length" in settings:
        values |= {"query_max_length": value, "cutoff_len": max(value, settings["doc_max_length"])}
    return values


def _data_sets(value: Any, settings: Settings) -> Values:
    """Our names of the authors' data, with the rows that their loaders take."""
    is_diffusion_embedder = "doc_max_length" in settings or "loss_class" in settings
    match value:
        case "wikitext":
            return {"dataset": "wikitext_103", "eval_dataset": "wikitext_103_validation"}
        case "Wiki1M":
            return {"dataset": "wiki1m", "num_negatives": 0}
        case "E5" if not is_diffusion_embedder:
            return {"dataset": ", ".join(E5), "num_negatives": 1}
        case "E5":
            return {"dataset": ", ".join(E5_ENGLISH), "max_samples": 8_000, "num_negatives": 1}
        case "E5Custom":
            return {"dataset": ", ".join(E5_ENGLISH), "num_negatives": 1}
        case "MSMARCO":
            return {"dataset": "msmarco_w_instructions", "max_samples": 16_000}
        case "E5Mix":
            return {"dataset": "theorem_aug", "skip_bad_rows": True, "num_negatives": 1}
        case "ReasonIR":
            parts = ["reasonir_hq_sample", "reasonir_vl_sample", *(f"{name}[:3000]" for name in E5_ENGLISH)]
            return {"dataset": ", ".join(parts), "num_negatives": 1}
        case "conll2003":
            return {"dataset": "conll2003", "eval_dataset": "conll2003_test"}
        case "universal_dependencies":
            return {"dataset": "ud_english_ewt", "eval_dataset": "ud_english_ewt_test"}
    return {"dataset": value}


def _word_column(value: Any, settings: Settings) -> Values:
    """The column of labels; the Diffusion Embedder has a flag of the same name for its data."""
    if _kind_of(settings) != "word-task":
        return {}
    is_ewt = settings.get("dataset_config_name") == "en_ewt"
    return {"word_task": "xpos" if is_ewt and value == "pos_tags" else WORD_COLUMNS.get(value, value)}


def _attention(value: Any, settings: Settings) -> Values:
    """An encoder has its own attention."""
    if settings.get("model_class") == "auto":
        return {}
    return {"attention": "bidirectional" if value else "causal"}


def _place_of_words(value: Any, settings: Settings) -> Values:
    """An encoder's words are read where they stand."""
    return {} if settings.get("model_class") == "auto" else {"retroactive_labels": value}


def _loss(value: Any, settings: Settings) -> Values:
    """RepLLaMA's has 15 negatives and no temperature."""
    if value == "RepllamaLoss":
        return {"contrastive_loss": "repllama", "num_negatives": 15}
    return {"contrastive_loss": "info_nce"}


def _implied(settings: Settings) -> Values:
    """What the four programs do without being asked."""
    kind = _kind_of(settings)
    stage = "contrastive" if kind in ("simcse", "supervised") else kind
    values: Values = {"stage": stage, "do_train": True, "dataset_dir": "data"}
    if kind == "word-task":
        is_full = bool(settings.get("full_fine_tune"))
        values["train_backbone"] = "full" if is_full else "frozen"
        values |= {"finetuning_type": "full"} if is_full else {}
        if settings.get("model_class") != "auto":
            values |= _attention(settings.get("bidirectional", False), settings)
        return values
    rank = settings.get("lora_r", 8)
    values |= {"finetuning_type": "lora", "lora_rank": rank, "lora_alpha": 2 * rank}
    values |= {"lora_dropout": 0.05, "lora_target": "all"}
    if kind == "mntp":
        return values
    is_repllama = settings.get("loss_class") == "RepllamaLoss"
    values |= {"attention": "bidirectional", "pooling": "mean"} | _templates(settings)
    values |= {} if is_repllama else {"contrastive_loss": "info_nce", "loss_temperature": 1 / 50}
    if kind == "supervised":
        values["skip_instruction"] = True
    return values


IN_DATASET_INFO = "its path stands in `data/dataset_info.json` (data/README.md)"
BY_THE_HOST = "the host prepares texts while it trains"

LLM2VEC = Tool(
    key="llm2vec",
    title="LLM2Vec and the Diffusion Embedder",
    flags=(
        *TRAINING_ARGUMENTS,
        computed("model_name_or_path", ["model_name_or_path", "adapter_name_or_path", "create_new_adapter"],
                 lambda value, settings: _model_and_adapters(settings),
                 "as it is; a repository of an mntp adapter becomes its base model and the adapter"),
        computed("peft_model_name_or_path", ["adapter_name_or_path", "create_new_adapter"], _adapter,
                 "merged, and a new adapter trained; after an mntp repository it goes on training"),
        computed("peft_addr", ["adapter_name_or_path"], _adapter,
                 "as it is; under `full_fine_tune` merge it into the model first"),
        mapped("torch_dtype", "bf16", {"bfloat16": True}),
        mapped("attn_implementation", "flash_attn",
               {"flash_attention_2": "fa2", "sdpa": "sdpa", "eager": "disabled"}),
        computed("lora_r", ["lora_rank", "lora_alpha"], lambda value, settings: {"lora_rank": value,
                 "lora_alpha": 2 * value}, "`lora_alpha` is twice the rank"),
        *same("lora_dropout", "mlm_probability", "simcse_dropout", "scale_by_dim", "stop_after_n_steps",
              "classifier_dropout", "merge_subwords", "cache_dir", "use_fast_tokenizer", "model_revision",
              "low_cpu_mem_usage", "trust_remote_code", "overwrite_cache", "preprocessing_num_workers",
              "line_by_line", "streaming", "skip_instruction"),
        renamed("mask_token_type", "mask_token"),
        mapped("data_collator_type", "masking",
               {"default": "bert", "all_mask": "all_mask", "custom_no_random": "all_mask"}),
        computed("bidirectional", ["attention"], _attention, "true: `bidirectional`, false: `causal`"),
        mapped("pooling_mode", "pooling",
               {"mean": "mean", "weighted_mean": "weighted_mean", "eos_token": "eos", "bos_token": "bos",
                "last_token": "last"}),
        computed("loss_scale", ["loss_temperature"], lambda value, settings: {"loss_temperature": 1 / value},
                 "1 / scale"),
        computed("loss_class", ["contrastive_loss"], _loss,
                 "`HardNegativeNLLLoss` → `info_nce`, `RepllamaLoss` → `repllama`"),
        computed("max_seq_length", ["cutoff_len", "query_max_length"], _longest_text,
                 "of queries, where documents have a length of their own"),
        renamed("doc_max_length", "document_max_length"),
        computed("dataset_name", ["dataset", "eval_dataset", "max_samples", "num_negatives"], _data_sets,
                 "our names of the same data, with the rows that the original's loader takes"),
        renamed("max_train_samples", "max_samples"),
        computed("task", ["word_task"], _word_column,
                 "`pos_tags` → `pos` (English Web Treebank: `xpos`), `ner_tags` → `ner`, `chunk_tags` → `chunk`"),
        computed("retroactive_labels", ["retroactive_labels"], _place_of_words, "as it is"),
        computed("full_fine_tune", ["train_backbone", "finetuning_type"], lambda value, settings: {},
                 "`train_backbone: full` and `finetuning_type: full`"),
        computed("unfrozen", ["train_backbone", "finetuning_type"], lambda value, settings: {},
                 "`train_backbone: full` and `finetuning_type: full`"),
        *nothing("the model's configuration says what it is", "model_class", "model_type", "config_name",
                 "config_overrides", "tokenizer_name"),
        *nothing(IN_DATASET_INFO, "dataset_file_path", "dataset_config_name", "aug_file_path", "train_file",
                 "validation_file", "domain"),
        *nothing("`dataset` names the sets that are mixed", "add_e5"),
        *nothing("name an `eval_dataset`, or set `val_size`", "validation_split_percentage"),
        *nothing("name fewer rows in `eval_dataset`: `name[:100]`", "max_eval_samples"),
        *nothing("texts are packed, never padded", "pad_to_max_length"),
        *nothing("a secret has no place in a recipe: `hf auth login`, or HF_TOKEN", "token", "use_auth_token"),
        *nothing("`run_name` names a run", "experiment_id"),
        *nothing("`do_predict: true` in the recipe that trains, with `classifier_path`", "cls_addr", "batch_size"),
    ),
    implied=_implied,
    remarks=(
        "Ranks average their gradients, and a global batch holds rows of one task.",
        "Padding never counts in a mean.",
    ),
)  # fmt: skip
