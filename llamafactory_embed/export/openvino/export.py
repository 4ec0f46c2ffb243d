"""From a checkpoint to a folder with an OpenVINO graph, which sentence-transformers loads as its backend openvino."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig

from ...evaluation.tasks import ChosenTask, choose_tasks
from ...model.embedding_config import EmbeddingConfig
from ..card import describe_prompts, describe_properties, introduce, write_card_page
from ..folder import copy_ranges, new_folder
from ..layout import write_layout
from ..options import ExportOptions
from ..serving import Serving, plan_serving
from ..verify import expected_embeddings, require_sentence_transformers
from ..weights import load_merged, read_model_config
from .check import TaskScore, check_cosines, score_tasks
from .graph import convert_decoder, graph_mebibytes, require_openvino, save_graph


DATASET_DIR = "data"  # where the names of `dataset_info.json` are looked up, as `eval` does by default


@dataclass(frozen=True)
class ExportedGraph:
    """A folder that was written and checked."""

    folder: Path
    dtype: str
    mebibytes: float
    """Size of the graph's files."""
    lowest_cosine: float
    """Of a sample text's vector with the checkpoint's."""
    scores: list[TaskScore]


def export_openvino(checkpoint: str | Path, target: str | Path, options: ExportOptions | None = None) -> ExportedGraph:
    """Write a checkpoint as a graph. The folder is checked before it gets its name: a failure leaves nothing."""
    options = options or ExportOptions()
    config = EmbeddingConfig.load(checkpoint)
    config.require_one_vector("`--layout openvino`")
    dtype = graph_dtype(options, config)
    require_openvino()
    require_sentence_transformers()
    tasks = find_check_tasks(options)
    saved_config = read_model_config(checkpoint, config)
    size = config.embedding_size(saved_config.hidden_size)
    serving = plan_serving(config, size, options.query_task, options.dimensions)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    with new_folder(target, checkpoint, options.overwrite) as folder:
        model = load_merged(checkpoint, options.device, options.dequantize)
        expected = expected_embeddings(model, tokenizer, serving)
        write_layout(model, tokenizer, folder, serving, torch.float32, options.max_shard_size)
        save_graph(convert_decoder(folder), folder, int8=dtype == "int8")
        remove_torch_weights(folder)
        copy_ranges(checkpoint, folder)
        lowest = check_cosines(folder, expected, serving, dtype)
        scores = score_tasks(folder, model.cpu(), tokenizer, tasks)
        exported = ExportedGraph(Path(target), dtype, graph_mebibytes(folder), lowest, scores)
        lines = describe_graph(exported, config, saved_config, serving)
        write_card_page(folder, Path(target).name, checkpoint, config, "sentence-transformers", "finetune", lines)
    return exported


def graph_dtype(options: ExportOptions, config: EmbeddingConfig) -> str:
    """The type of the graph's weights; refuses what a graph cannot be."""
    if options.dtype not in ("auto", "float32", "int8"):
        raise ValueError(f"`--dtype {options.dtype}`: an OpenVINO graph is exported in float32 or int8.")
    if config.pooling == "multi_layer_latent":
        raise ValueError(
            "`pooling: multi_layer_latent` reads the states of all layers, and an OpenVINO graph gives those of the "
            "last one only: export this checkpoint without `--layout openvino`."
        )
    return "int8" if options.dtype == "int8" else "float32"


def find_check_tasks(options: ExportOptions) -> list[ChosenTask]:
    """The tasks of `--check-tasks`, read and checked before the model is loaded."""
    if not options.check_tasks:
        return []
    tasks = choose_tasks(options.check_tasks, DATASET_DIR, option="--check-tasks")
    others = [task.name for task in tasks if not task.is_retrieval]
    if others:
        raise ValueError(f"`--check-tasks`: {', '.join(others)} has no nDCG@10, as it is no task of retrieval.")
    return tasks


def remove_torch_weights(folder: Path) -> None:
    """The language model's weights, which the graph holds; those of poolings and Dense modules stay."""
    for path in folder.glob("model*.safetensors*"):
        path.unlink()


def describe_graph(
    exported: ExportedGraph, config: EmbeddingConfig, model: PretrainedConfig, serving: Serving
) -> list[str]:
    """The lines of the card."""
    trust = ", trust_remote_code=True" if serving.needs_code else ""
    lines = [
        f"{introduce(config)} This folder holds it as an OpenVINO graph in {exported.dtype}, for CPUs; it holds no "
        "weights for torch.",
        "",
        *describe_properties(config, model, serving),
        "",
        "## Use",
        "",
        "```bash",
        'pip install "sentence-transformers[openvino]"',
        "```",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{exported.folder.name}", backend="openvino"{trust})',
        'queries = model.encode_query(["a query"])',
        'documents = model.encode_document(["a document", "another one"])',
        "print(model.similarity(queries, documents))",
        "```",
        "",
        "## What the conversion has kept",
        "",
        f"The vectors of the sample texts have a cosine of at least {exported.lowest_cosine:.6f} with those of the "
        "checkpoint in float32.",
        "",
        *describe_scores(exported.scores),
        *describe_prompts(serving),
    ]
    return lines


def describe_scores(scores: Sequence[TaskScore]) -> list[str]:
    """A table of nDCG@10, if tasks were named."""
    if not scores:
        return []
    rows = [f"| {score.task} | {score.before:.4f} | {score.after:.4f} |" for score in scores]
    return ["| nDCG@10 | checkpoint | this graph |", "|---|---|---|", *rows, ""]
