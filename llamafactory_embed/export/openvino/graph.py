"""A language model as an OpenVINO graph: token ids and padding in, the last layer's states out.

The converter follows one forward (torch.jit.trace), and transformers' own functions for masks cannot be followed: they
ask Python how long the batch is. `traceable_mask` draws the same mask, by the same rules of transformers (causal or
not, sliding windows, layer types), from indices that remain part of the graph, so that one graph serves every length.
Why the conversion is ours and not optimum-intel's: docs/decisions/0035-openvino-graphs.md.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from attention_patch import HYBRIDS


if TYPE_CHECKING:
    from openvino import CompiledModel, Model


GRAPH = (
    Path("openvino") / "openvino_model.xml"
)  # where sentence-transformers looks; the weights lie in a .bin beside it
OUTPUT = "last_hidden_state"
PACKAGES = ("openvino", "nncf", "optimum.intel")
TRACEABLE = "traceable"  # transformers' name for our attention

# Two texts of unlike lengths: any example will do, as the graph holds no number of it.
EXAMPLE_LENGTHS = (7, 4)


def require_openvino() -> None:
    """Called before anything is loaded."""
    if not all(_is_installed(package) for package in PACKAGES):
        raise ValueError(
            "`--layout openvino` needs OpenVINO, NNCF and optimum-intel, which are not all installed: "
            "pip install 'llamafactory-embed[eval,openvino]'."
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


class LastStates(nn.Module):
    """The forward that is followed."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids [B, L] and 1 where they are no padding → states [B, L, d]."""
        states: Tensor = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=False
        )[0]
        return states


def convert_decoder(folder: Path) -> Model:
    """The graph of the model whose weights and configuration a folder holds, in float32."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type in HYBRIDS:
        raise ValueError(
            f"`--layout openvino`: {type(config).__name__.removesuffix('Config')} mixes tokens by recurrence or"
            " convolution, which a graph of one example does not follow to other lengths: use another layout."
        )
    import numpy as np
    import openvino

    AttentionMaskInterface.register(TRACEABLE, traceable_mask)
    AttentionInterface.register(TRACEABLE, sdpa_attention_forward)
    decoder = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation=TRACEABLE).eval()
    lengths = torch.tensor(EXAMPLE_LENGTHS)
    mask = (torch.arange(max(EXAMPLE_LENGTHS)) < lengths[:, None]).long()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of branches on a mask, which is always there
        graph = openvino.convert_model(
            LastStates(decoder),
            example_input={"input_ids": torch.ones_like(mask), "attention_mask": mask},
            input=[("input_ids", [-1, -1], np.int64), ("attention_mask", [-1, -1], np.int64)],
        )
    graph.outputs[0].get_tensor().set_names({OUTPUT})
    return graph


def traceable_mask(
    batch_size: Any,
    q_length: Any,
    kv_length: Any,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    **unused: Any,
) -> Tensor:
    """Numbers to add to the scores, [B, 1, L, L]: 0 where `mask_function`, the rule of transformers for this layer,
    and the padding let a token look, and the smallest float elsewhere. Nothing is left out as superfluous: what is so
    for the example is not for other batches."""
    if mask_function is None or attention_mask is None:
        raise RuntimeError("The graph is made of padded batches without a cache.")
    rows = torch.arange(attention_mask.shape[0])[:, None, None, None]
    places = torch.arange(attention_mask.shape[1])
    heads = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    allowed = mask_function(rows, heads, places[:, None], places[None, :]) & attention_mask.bool()[:, None, None, :]
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def save_graph(graph: Model, folder: Path, int8: bool) -> None:
    """Write the graph; `int8` stores the weights of linear layers and embeddings in one byte each."""
    import openvino

    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)  # not before: importing it sets the level
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    (folder / GRAPH).parent.mkdir()
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)


def open_graph(folder: Path) -> CompiledModel:
    """A folder's graph, ready to run on this machine's CPU."""
    import openvino

    return openvino.Core().compile_model(folder / GRAPH, "CPU")


def graph_mebibytes(folder: Path) -> float:
    """The size of the graph's two files."""
    return sum(path.stat().st_size for path in (folder / GRAPH).parent.iterdir()) / 2**20
