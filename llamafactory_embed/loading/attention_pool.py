"""The pooler of Pooling-and-Attention (Tang and Yang 2024), which lies beside its adapter in `attn_pool.pt`.

The file says how many latents there are and whether they read one layer or all. It says neither how many heads share
the width of the queries nor what a token attends to: designs 2 and 3 are causal, 4 and 5 bidirectional.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..model.pooling import LatentPooling
from ..model.tensor_files import load_without_code


ATTENTION_POOL_NAME = "attn_pool.pt"
HEADS, HEAD_SIZE = 32, 2048  # the authors'
# The original's parameter names → ours. Its context is what we call the latents, its input the keys.
PARAMETERS = {
    "latents": "latents",
    "pos_emb.weight": "layer_embeddings",
    "cross_attend_blocks.0.fn.to_q.weight": "to_query.weight",
    "cross_attend_blocks.0.fn.to_kv.weight": "to_key_value.weight",
    "cross_attend_blocks.0.fn.to_out.weight": "to_output.weight",
    "cross_attend_blocks.0.norm.weight": "key_norm.weight",
    "cross_attend_blocks.0.norm.bias": "key_norm.bias",
    "cross_attend_blocks.0.norm_context.weight": "latent_norm.weight",
    "cross_attend_blocks.0.norm_context.bias": "latent_norm.bias",
    "cross_attend_blocks.1.fn.net.0.weight": "feedforward_in.weight",
    "cross_attend_blocks.1.fn.net.0.bias": "feedforward_in.bias",
    "cross_attend_blocks.1.fn.net.2.weight": "feedforward_out.weight",
    "cross_attend_blocks.1.fn.net.2.bias": "feedforward_out.bias",
    "cross_attend_blocks.1.norm.weight": "feedforward_norm.weight",
    "cross_attend_blocks.1.norm.bias": "feedforward_norm.bias",
}
LAYER_EMBEDDINGS = "layer_embeddings"


@dataclass(frozen=True)
class AttentionPoolShape:
    """What the file tells of the pooler."""

    pooling: LatentPooling
    latents: int
    width: int
    """Heads times the size of a head."""

    @classmethod
    def of_file(cls, path: Path) -> AttentionPoolShape:
        """Without reading the weights."""
        state = read_attention_pool(path, device="meta")
        pooling: LatentPooling = "multi_layer_latent" if LAYER_EMBEDDINGS in state else "latent"
        return cls(pooling, len(state["latents"]), len(state["to_query.weight"]))

    def find_heads(self, asked: int | None, path: Path) -> tuple[int, int]:
        """Number and size of the heads: the authors' where the width is theirs, else as it was asked."""
        heads = HEADS if asked is None and self.width == HEADS * HEAD_SIZE else asked
        if heads is None:
            raise ValueError(
                f"{path} does not say how many heads share its width of {self.width}: name `latent_heads` (the "
                f"authors' is {HEADS}, of {HEAD_SIZE} each)."
            )
        if self.width % heads:
            raise ValueError(
                f"`latent_heads: {heads}` does not divide {self.width}, the width of the heads in {path}."
            )
        return heads, self.width // heads


def read_attention_pool(path: Path, num_layers: int | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """The weights under our names. Embeddings of layers that the model does not have are left out: the original has 32
    of them for any model."""
    loaded = load_without_code(path, device)
    prefix = next((name.removesuffix("latents") for name in loaded if name.split(".")[-1] == "latents"), None)
    state = {
        PARAMETERS[name.removeprefix(prefix)]: each
        for name, each in loaded.items()
        if prefix is not None and name.removeprefix(prefix) in PARAMETERS
    }
    needed = set(PARAMETERS.values()) - {LAYER_EMBEDDINGS}
    if not needed <= set(state) or len(state) != len(loaded):
        odd = sorted(needed - set(state)) or sorted(set(loaded) - set(PARAMETERS))
        raise ValueError(
            f"{path} does not hold the pooler of Pooling-and-Attention (see `{odd[0]}`): name the folder of one of "
            "its checkpoints."
        )
    if LAYER_EMBEDDINGS in state and num_layers is not None:
        state[LAYER_EMBEDDINGS] = state[LAYER_EMBEDDINGS][:num_layers].clone()
    return state
