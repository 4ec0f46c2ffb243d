"""Which recipe of ours is which file of an original, and where the two knowingly differ.

A row names the original's file, our recipe, and what its header adds on the command line. `departures` are
differences in effect, each with its reason; an entry that is no difference any more fails a test, and so does a
difference that has no entry. docs/originals.md is generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.published.expected import E5_SETS_OF_THE_DIFFUSION_EMBEDDER


@dataclass(frozen=True)
class Row:
    """One file of an original."""

    original: str
    """`family/path`: the family is the name of a file in `facts/`."""
    kind: str
    """The translator in `expected.py`."""
    recipe: str
    overrides: str = ""
    """What the command line adds, as the recipe's header prints it."""
    departures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NotARecipe:
    """A file of an original that has no recipe: what serves its purpose here."""

    original: str
    instead: str


LORA = "examples/train_lora"
LLM2VEC = f"{LORA}/llm2vec"
EMBEDDER = f"{LORA}/diffusion_embedder"
WORDS = "examples/word_task"

MERGED_FIRST = {
    "model_name_or_path": "full fine-tuning starts from whole weights: the adapter is merged before",
    "adapter_name_or_path": "merged before, as the recipe's header says",
}
AS_MANY_TEXTS = "how many texts are written; here `max_samples` says it, and nothing is split off"


def llm2vec_rows(family: str) -> list[Row]:
    """LLM2Vec's three steps, which the Diffusion Embedder's repository repeats."""
    names = {"Llama2": "llama2", "MetaLlama3": "llama3", "Mistral": "mistral", "Sheared-Llama": "sheared_llama"}
    rows = []
    for kind in ("mntp", "simcse", "supervised"):
        if family == "diffusion_embedder" and kind == "supervised":
            continue  # others there
        for theirs, ours in names.items():
            rows.append(Row(f"{family}/train_configs/{kind}/{theirs}.json", kind, f"{LLM2VEC}/{ours}_{kind}.yaml"))
    llama3_1 = "model_name_or_path=meta-llama/Meta-Llama-3.1-8B-Instruct"
    rows.append(
        Row(
            f"{family}/train_configs/mntp/MetaLlama3.1.json",
            "mntp",
            f"{LLM2VEC}/llama3_mntp.yaml",
            f"{llama3_1} output_dir=saves/llm2vec_llama3_1_mntp",
        )
    )
    if family == "llm2vec":
        rows.append(
            Row(
                f"{family}/train_configs/supervised/MetaLlama3.1.json",
                "supervised",
                f"{LLM2VEC}/llama3_supervised.yaml",
                f"{llama3_1} adapter_name_or_path=saves/llm2vec_llama3_1_mntp "
                "output_dir=saves/llm2vec_llama3_1_supervised",
            )
        )
    return rows


def word_rows(family: str) -> list[Row]:
    """The twelve files of LLM2Vec's word tasks, which two other repositories repeat."""
    models = {
        "ShearedLlama": ("sheared_llama", "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp"),
        "Llama2": ("llama2", "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp"),
        "Mistral": ("mistral", "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"),
    }
    rows = []
    for theirs, (ours, mntp) in models.items():
        after_mntp = f"retroactive_labels=next_token adapter_name_or_path={mntp}"
        variants = {
            "bi": "",
            "uni": f"attention=causal output_dir=saves/{ours}_pos_causal",
            "bi-mntp": f"{after_mntp} output_dir=saves/{ours}_pos_mntp",
            "bi-mntp-simcse": f"{after_mntp},{mntp}-unsup-simcse output_dir=saves/{ours}_pos_simcse",
        }
        for variant, overrides in variants.items():
            original = f"{family}/train_configs/word-task/{theirs}-{variant}.json"
            rows.append(Row(original, "word-task", f"{WORDS}/{ours}_conll2003.yaml", overrides))
    return rows


def diffusion_embedder_rows() -> list[Row]:
    rows = []
    models = {"Dream": "dream", "MetaLlama3": "llama3", "Mistral": "mistral", "Qwen2": "qwen2_5"}
    supervised = "diffusion_embedder/train_configs/supervised"
    for theirs, ours in models.items():
        instruction = f"{LORA}/dream_embed.yaml" if ours == "dream" else f"{EMBEDDER}/{ours}_instruction.yaml"
        rows.append(Row(f"{supervised}/{theirs}_if.json", "supervised", instruction))
        if ours != "dream":
            without = (
                f"adapter_name_or_path=null create_new_adapter=false output_dir=saves/{ours}_instruction_without_mntp"
            )
            rows.append(Row(f"{supervised}/{theirs}_if_.json", "supervised", instruction, without))
        rows.append(Row(f"{supervised}/{theirs}_long.json", "supervised", f"{EMBEDDER}/{ours}_long.yaml"))
        rows.append(Row(f"{supervised}/{theirs}_theorem.json", "supervised", f"{EMBEDDER}/{ours}_theorem.yaml"))
        if ours != "mistral":
            rows.append(Row(f"{supervised}/{theirs}_reason.json", "supervised", f"{EMBEDDER}/{ours}_reasoning.yaml"))
    e5 = ",".join(f"e5_{name}" for name in E5_SETS_OF_THE_DIFFUSION_EMBEDDER)
    rows.append(
        Row(
            f"{supervised}/Dream_custom.json",
            "supervised",
            f"{EMBEDDER}/dream_reasoning.yaml",
            f"dataset='{e5}' save_steps=500 output_dir=saves/dream_e5",
        )
    )
    configs = "diffusion_embedder/train_configs"
    rows.append(Row(f"{configs}/mntp/Qwen2.json", "mntp", f"{LLM2VEC}/qwen2_5_mntp.yaml"))
    rows.append(Row(f"{configs}/simcse/Dream.json", "simcse", f"{EMBEDDER}/dream_simcse.yaml"))
    rows.append(Row(f"{configs}/simcse/Qwen2.json", "simcse", f"{EMBEDDER}/qwen2_5_simcse.yaml"))
    return rows


def fork_rows() -> list[Row]:
    """What LLM2Vec's word-level fork adds."""
    train = "llm2vec_word_fork/train_configs/word-task"
    frozen = (
        "retroactive_labels=next_token stop_after_n_steps=3000 adapter_name_or_path=saves/llm2vec_sheared_llama_mntp"
    )
    recipe = f"{WORDS}/sheared_llama_conll2003.yaml"
    full = f"{WORDS}/sheared_llama_conll2003_full.yaml"
    ewt = "dataset=ud_english_ewt eval_dataset=ud_english_ewt_test"
    deberta = f"{WORDS}/deberta_v3_ewt.yaml"
    return [
        Row(f"{train}/ShearedLlama-bi-mntp_pos.json", "word-task", recipe,
            f"{frozen} output_dir=saves/sheared_llama_pos_fork"),
        Row(f"{train}/ShearedLlama-bi-mntp_ner.json", "word-task", recipe,
            f"{frozen} word_task=ner output_dir=saves/sheared_llama_ner_fork"),
        Row(f"{train}/ShearedLlama-bi-mntp_pos_ewt.json", "word-task", recipe,
            f"{frozen} word_task=xpos {ewt} output_dir=saves/sheared_llama_ewt_fork"),
        Row(f"{train}/ShearedLlama-bi-mntp-unfrozen-pos.json", "word-task", full, departures=MERGED_FIRST),
        Row(f"{train}/ShearedLlama-bi-mntp-unfrozen-ner.json", "word-task", full,
            "word_task=ner flash_attn=disabled output_dir=saves/sheared_llama_ner_full", MERGED_FIRST),
        Row(f"{train}/ShearedLlama-unfrozen-mntp_pos_ewt.json", "word-task", full,
            f"word_task=xpos flash_attn=disabled {ewt} num_train_epochs=10 output_dir=saves/sheared_llama_ewt_full",
            MERGED_FIRST),
        Row(f"{train}/BERT-frozen-pos.json", "word-task", f"{WORDS}/bert_conll2003.yaml"),
        Row(f"{train}/DeBERTa-frozen-pos.json", "word-task", f"{WORDS}/deberta_v3_conll2003.yaml"),
        Row(f"{train}/DeBERTa-frozen-ner.json", "word-task", f"{WORDS}/deberta_v3_conll2003.yaml",
            "word_task=ner stop_after_n_steps=3000 output_dir=saves/deberta_v3_ner"),
        Row(f"{train}/DeBERTa-frozen-ewt.json", "word-task", deberta),
        Row(f"{train}/DeBERTa-unfrozen-ewt.json", "word-task", deberta,
            "finetuning_type=full train_backbone=full output_dir=saves/deberta_v3_ewt_full",
            {"train_backbone": "the file does not say so itself; its name does"}),
    ]  # fmt: skip


def tdro_rows() -> list[Row]:
    return [
        Row("tdro/scripts/s0_train_baseline_model.sh", "tdro", "examples/tdro/qwen1_5_s0.yaml"),
        Row("tdro/scripts/s1_tdro.sh", "tdro", "examples/tdro/qwen1_5_s1.yaml"),
        Row("tdro/scripts/s2_train_optimized_model.sh", "tdro", "examples/tdro/qwen1_5_s2_curr.yaml"),
    ]


def diffullama_rows() -> list[Row]:
    """DiffuLLaMA's recipes are recipes of the host."""
    examples = "diffullama/LLaMA-Factory/examples"
    full, inference = "examples/train_full", "examples/inference"
    small = (
        "model_name_or_path=gpt2 learning_rate=5.0e-6 warmup_steps=100 max_steps=10000 save_total_limit=3 "
        "max_grad_norm=1.0 output_dir=output/gpt2-ddm-small"
    )
    small_texts = (
        "model_name_or_path=gpt2 checkpoint_dir=output/gpt2-ddm-small-512 cutoff_len=512 max_new_tokens=512 "
        "diffusion_steps=512 output_dir=output/gpt2-ddm-small-512/predict"
    )
    llama2_texts = (
        "model_name_or_path=output/llama2-ddm checkpoint_dir=null cutoff_len=2048 max_new_tokens=2048 "
        "diffusion_steps=256 max_samples=32 per_device_eval_batch_size=32 output_dir=output/llama2-ddm/predict"
    )
    return [
        Row(f"{examples}/train_full/gpt2_full_ddm.yaml", "diffullama", f"{full}/gpt2_full_ddm.yaml"),
        Row(f"{examples}/train_full/gpt2_full_ddm-small.yaml", "diffullama", f"{full}/gpt2_full_ddm.yaml", small),
        Row(f"{examples}/train_full/gpt2_full_ddm-sft.yaml", "diffullama", f"{full}/gpt2_full_ddm-sft.yaml"),
        Row(f"{examples}/train_full/gpt2_preprocess.yaml", "diffullama", f"{full}/gpt2_preprocess.yaml",
            departures={
                "stage": "ours tokenizes by the stage that reads the rows, so that documents are kept apart",
                "finetuning_type": "nothing is trained",
            }),
        Row(f"{examples}/train_lora/llama2_lora_ddm-sft.yaml", "diffullama", f"{LORA}/llama2_lora_ddm-sft.yaml"),
        Row(f"{examples}/train_lora/llama2_lora_ar-sft-gsm.yaml", "diffullama", f"{LORA}/llama2_lora_ar-sft-gsm.yaml"),
        Row(f"{examples}/inference/gpt2_full_ddm-inf.yaml", "diffullama", f"{inference}/gpt2_full_ddm-inf.yaml",
            departures={"val_size": AS_MANY_TEXTS}),
        Row(f"{examples}/inference/gpt2_full_ddm-small-inf-512.yaml", "diffullama",
            f"{inference}/gpt2_full_ddm-inf.yaml", small_texts, {"val_size": AS_MANY_TEXTS}),
        Row(f"{examples}/inference/llama2_full_ddm-inf-uncon.yaml", "diffullama",
            f"{inference}/gpt2_full_ddm-inf.yaml", llama2_texts, {"val_size": AS_MANY_TEXTS}),
        Row(f"{examples}/inference/gpt2_full_ddm-gsm-inf.yaml", "diffullama",
            f"{inference}/gpt2_full_ddm-gsm-inf.yaml",
            departures={
                "model_name_or_path": "our training writes a complete model",
                "checkpoint_dir": "our training writes a complete model",
            }),
        Row(f"{examples}/inference/llama2_full_ddm-gsm-inf.yaml", "diffullama",
            f"{inference}/llama2_full_ddm-gsm-inf.yaml",
            departures={"additional_target": "the adapter itself says which modules it holds"}),
    ]  # fmt: skip


def pooling_and_attention_rows() -> list[Row]:
    """The five designs share the file of their adapter."""
    designs = {
        "1_causal_eos": "pooling-and-attention",
        "2_causal_latent": "latent-pooling-and-attention",
        "3_causal_multi_layer": "latent-pooling-and-attention",
        "4_bidirectional_latent": "latent-pooling-and-attention",
        "5_bidirectional_multi_layer": "latent-pooling-and-attention",
    }
    return [
        Row("pooling_and_attention/lora.json", kind, f"{LORA}/pooling_and_attention/{name}.yaml")
        for name, kind in designs.items()
    ]


def word_tests() -> list[NotARecipe]:
    """Each test file names a checkpoint of a training file; our recipes train and judge in one run."""
    repeated = [f"{model}-{variant}" for model in ("ShearedLlama", "Llama2", "Mistral")
                for variant in ("uni", "bi", "bi-mntp", "bi-mntp-simcse")]  # fmt: skip
    fork = [
        "BERT-frozen-pos-test",
        "DeBERTa-frozen-ewt",
        "DeBERTa-frozen-ner",
        "DeBERTa-frozen-pos",
        "ShearedLlama-bi-mntp-unfrozen_pos",
        "ShearedLlama-bi-mntp_ner",
        "ShearedLlama-bi-mntp_pos",
        "ShearedLlama-bi-mntp_pos_ewt",
        "ShearedLlama-bi-mntp_unfrozen_ewt",
        "ShearedLlama-bi-mntp_unfrozen_ner",
    ]
    instead = "`do_predict: true` in the recipe that trains, or `do_train=false classifier_path=…` on its command line"
    return [
        NotARecipe(f"{family}/test_configs/word-task/{name}.json", instead)
        for family, names in (("llm2vec", repeated), ("llm2vec_word_fork", [*repeated, *fork]))
        for name in names
    ]


def other_files() -> list[NotARecipe]:
    weights = [f"{name}_weights" for name in ("curr", "ema", "mean")]
    weights += [f"top{share}_weights" for share in range(20, 100, 10)]
    weight_file = "`dataset_weights: FILE` reads it as it is; `stage: tdro` writes the same kind (docs/tdro.md)"
    engine = "DeepSpeed's own file, named by `deepspeed:` in a recipe: examples/deepspeed"
    training = "diffullama/DiffuLLaMA-training"
    return [
        NotARecipe("llm2vec/test_configs/mteb/task_to_instructions.json", "examples/eval/llm2vec.yaml"),
        *(NotARecipe(f"tdro/config/robust_weights/{name}.json", weight_file) for name in weights),
        NotARecipe("tdro/config/uniform_sampling_s0.json", "`dataset_weights: uniform`"),
        NotARecipe("tdro/eval/test_beir.sh", "examples/eval/tdro.yaml"),
        NotARecipe("tdro/eval/test_miracl.sh", "examples/eval/tdro.yaml"),
        NotARecipe("tdro/eval/test_mkqa.sh", "examples/eval/tdro.yaml"),
        NotARecipe(f"{training}/accelerate_configs/single_node.yaml", engine),
        NotARecipe(f"{training}/accelerate_configs/zero3.json", "examples/deepspeed/ds_z3_config.json"),
        NotARecipe(f"{training}/accelerate_configs/zero3_offload.json", engine),
        NotARecipe(f"{training}/accelerate_configs/zero3_offload_inference.json", engine),
        NotARecipe(
            f"{training}/multi_node.sh", "`NNODES=… NODE_RANK=…` before `llamafactory-cli train` (docs/recipes.md)"
        ),
        NotARecipe(f"{training}/run_distributed.sh", "examples/train_full/llama2_full_ddm.yaml"),
        NotARecipe("pooling_and_attention/accelerate_config.yaml", "eight GPUs, bf16, `deepspeed:` with ZeRO-2"),
    ]


OTHERS: list[NotARecipe] = [*word_tests(), *other_files()]

ROWS: list[Row] = [
    *llm2vec_rows("llm2vec"),
    *llm2vec_rows("diffusion_embedder"),
    *diffusion_embedder_rows(),
    *word_rows("llm2vec"),
    *word_rows("diffusion_embedder"),
    *word_rows("llm2vec_word_fork"),
    *fork_rows(),
    *tdro_rows(),
    *diffullama_rows(),
    *pooling_and_attention_rows(),
]
