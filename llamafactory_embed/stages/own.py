"""The stages of this package, as entry points register them (pyproject.toml)."""

from ..hparams.contrastive import ContrastiveOptions
from ..hparams.ddm import DiffusionOptions, DiffusionTuningOptions
from ..hparams.mntp import MntpOptions
from ..hparams.tdro import TdroOptions
from ..hparams.word_task import WordTaskOptions
from .stage import Stage


EMBEDDINGS_TAB = "llamafactory_embed.look.tab:create_embeddings_tab"
BENCHMARKS = "llamafactory_embed.look.benchmarks:create_benchmarks"

CONTRASTIVE = Stage(
    name="contrastive",
    options=ContrastiveOptions,
    run="llamafactory_embed.train.embed.contrastive.workflow:run_contrastive",
    check="llamafactory_embed.train.checks:check_contrastive",
    label="Contrastive Embedding",
    formats=("retrieval",),
    tab=EMBEDDINGS_TAB,
    evaluation=BENCHMARKS,
)
TDRO = Stage(
    name="tdro",
    options=TdroOptions,
    run="llamafactory_embed.train.embed.tdro.workflow:run_tdro",
    check="llamafactory_embed.train.checks:check_tdro",
    label="Task-Robust Weights (tDRO)",
    formats=("retrieval",),
    tab=EMBEDDINGS_TAB,
    evaluation=BENCHMARKS,
)
MNTP = Stage(
    name="mntp",
    options=MntpOptions,
    run="llamafactory_embed.train.embed.mntp.workflow:run_mntp",
    label="Masked Next-Token Prediction",
)
WORD_TASK = Stage(
    name="word-task",
    options=WordTaskOptions,
    run="llamafactory_embed.train.embed.word_task.workflow:run_word_task",
    check="llamafactory_embed.train.checks:check_word_task",
    label="Word-Level Task",
    formats=("words",),
)
DDM = Stage(
    name="ddm",
    options=DiffusionOptions,
    run="llamafactory_embed.train.ddm.workflow:run_ddm",
    check="llamafactory_embed.train.checks:check_ddm",
    label="Diffusion Pre-Training",
    engine="llamafactory_embed.serve.chat:DiffusionEngine",
)
DDM_SFT = Stage(
    name="ddm-sft",
    options=DiffusionTuningOptions,
    run="llamafactory_embed.train.ddm.workflow:run_ddm_sft",
    check="llamafactory_embed.train.checks:check_ddm",
    label="Diffusion Fine-Tuning",
    engine="llamafactory_embed.serve.chat:DiffusionEngine",
)
