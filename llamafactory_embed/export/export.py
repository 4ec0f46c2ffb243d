"""From a checkpoint to a folder that serves the same embeddings, as a check has shown."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..encoder.encoder import Encoder
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from .card import write_layout_card
from .folder import copy_ranges, new_folder
from .layout import write_layout
from .multi_vector import check_vector_sets
from .options import ExportOptions
from .serving import describe_servers, plan_serving
from .verify import SAMPLES, Agreement, check_folder, expected_embeddings, require_sentence_transformers, stacked
from .weights import find_dtype, load_merged, read_model_config, round_weights


@dataclass(frozen=True)
class Exported:
    """A folder that was written and checked."""

    folder: Path
    dtype: str
    agreement: Agreement
    """How closely the readers of the folder agree with the checkpoint."""
    rounding: float
    """How far rounding to `dtype` moved the sample embeddings from those in float32, as 1 - cosine; 0 for float32."""
    remarks: list[str]
    """Which programs can load the folder, and which cannot."""


def export_checkpoint(checkpoint: str | Path, target: str | Path, options: ExportOptions | None = None) -> Exported:
    """Write a checkpoint in sentence-transformers' layout. The folder is checked before it gets its name: a failure
    leaves nothing behind."""
    options = options or ExportOptions()
    require_sentence_transformers()
    config = EmbeddingConfig.load(checkpoint)
    saved_config = read_model_config(checkpoint, config)
    serving = plan_serving(
        config, config.embedding_size(saved_config.hidden_size), options.query_task, options.dimensions
    )
    dtype = find_dtype(saved_config, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if serving.needs_code and config.skip_instruction and not tokenizer.is_fast:
        raise ValueError(
            f"`skip_instruction` needs to know where a text's tokens begin, which {type(tokenizer).__name__} cannot "
            "say: use the fast version of this tokenizer."
        )

    with new_folder(target, checkpoint, options.overwrite) as folder:
        model = load_merged(checkpoint, options.device, options.dequantize)
        rounding = round_and_measure(model, tokenizer, dtype)
        write_layout(model, tokenizer, folder, serving, dtype, options.max_shard_size)
        copy_ranges(checkpoint, folder)
        if config.multi_vector:
            agreement = check_vector_sets(folder, model, tokenizer, serving, options.device)
        else:
            expected = expected_embeddings(model, tokenizer, serving)
            agreement = check_folder(folder, expected, model, serving, options.device)
        remarks = describe_servers(config, serving, saved_config)
        write_layout_card(folder, Path(target).name, checkpoint, config, saved_config, serving, remarks)
    return Exported(Path(target), str(dtype).removeprefix("torch."), agreement, rounding, remarks)


def round_and_measure(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> float:
    """Round the weights to the type in which they are saved; return how far the embeddings of the samples move."""
    if dtype == torch.float32:
        return 0.0
    encoder = Encoder(model, tokenizer)
    exact = stacked(encoder.encode(SAMPLES, normalize=True))
    round_weights(model, dtype)
    return float(np.max(1 - np.sum(exact * stacked(encoder.encode(SAMPLES, normalize=True)), axis=1)))


def quiet_loaders() -> None:
    """A check loads the same model several times: keep the loaders' bars and remarks off the screen."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("sentence_transformers", "optimum.intel.openvino.modeling_base"):
        logging.getLogger(library).setLevel(logging.ERROR)
