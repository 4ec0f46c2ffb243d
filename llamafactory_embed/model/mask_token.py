"""The token that hides another: found in the tokenizer or added to it, and its embedding.

LLM2Vec and DiffuLLaMA let a natural token double as the mask, or add one whose embedding is neither trained nor saved.
Here an added token's embedding starts as the mean of all and is trained. With all weights trained it is a row of the
embedding matrix. With an adapter it is one vector of its own, saved beside an adapter that stays an ordinary one: that
loads on the unchanged base model wherever adapters are loaded, and only who needs the mask token reads the vector.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


RECORD_NAME = "masked_tokens.json"
EMBEDDING_NAME = "mask_token.safetensors"
ADDED_TEXT = "<mask>"
BLANK_TEXT = "_"
PARAMETER = "mask_embedding"  # of the embedding module, when the mask's embedding is a vector of its own
ROWS_PER_MEAN = 8192


@dataclass(frozen=True)
class MaskToken:
    """The token, and whether the tokenizer had to learn it."""

    text: str
    id: int
    is_added: bool = False


@dataclass(frozen=True)
class MaskedTokenRecord:
    """What a checkpoint remembers so that masked tokens are predicted as they were trained."""

    mask_token: str
    mask_token_id: int
    shift: bool
    base_model: str | None = None
    """The model below the adapter, for a checkpoint that holds an adapter only."""
    merged_adapters: tuple[str, ...] = ()
    """Adapters merged into the base model before this one, in that order."""
    block_size: int | None = None
    """Of block diffusion: no token sees a block behind its own."""
    sliding_window: Literal["keep", "ignore"] = "keep"
    """Full weights say it in their config.json, too; an adapter only here."""

    def save(self, folder: str | Path) -> None:
        """Write to a temporary name, then rename: a reader never sees half a file."""
        path = Path(folder) / RECORD_NAME
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def find(cls, folders: Sequence[str | Path], **hub: Any) -> MaskedTokenRecord | None:
        """That of the last folder which has one: a model, then the adapters on it. `hub` (`token`, `revision`,
        `cache_dir`) is for those that are named by their place there."""
        path = find_last(folders, RECORD_NAME, **hub)
        if path is None:
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"merged_adapters": tuple(values["merged_adapters"])})


def find_last(folders: Sequence[str | Path], name: str, **hub: Any) -> Path | None:
    """The file of that name in the last of these folders or repositories of the hub which has it."""
    for folder in reversed(folders):
        if os.path.isdir(folder):
            path = Path(folder) / name
        else:
            try:
                path = Path(hf_hub_download(str(folder), name, **hub))
            except (OSError, ValueError):  # it is not there, nobody can be asked, or this is no name for the hub
                continue
        if path.is_file():
            return path
    return None


# --------------------------------------------------------------------------------------------------------------------
# The tokenizer's side
# --------------------------------------------------------------------------------------------------------------------


def find_mask_token(
    tokenizer: PreTrainedTokenizerBase,
    asked: str | None,
    family_token: str | None = None,
    otherwise: Literal["blank", "mask"] = "mask",
) -> MaskToken:
    """The token that `mask_token` asks for: `blank`, `eos`, `mask` or any text that is one token. Without it the token
    of the model's family, else the tokenizer's own, else what `otherwise` says. `mask` adds a token, to this
    tokenizer, if it has none."""
    if asked is None and family_token is not None:
        return _existing(tokenizer, family_token)
    wanted = asked or ("mask" if tokenizer.mask_token is not None else otherwise)
    if wanted == "mask":
        return _own_or_added(tokenizer, family_token)
    if wanted == "eos":
        if tokenizer.eos_token is None:
            raise ValueError("`mask_token: eos` needs a tokenizer with an EOS token, and this one has none.")
        return _existing(tokenizer, tokenizer.eos_token)
    return _existing(tokenizer, BLANK_TEXT if wanted == "blank" else wanted)


def _own_or_added(tokenizer: PreTrainedTokenizerBase, family_token: str | None) -> MaskToken:
    own = tokenizer.mask_token or family_token
    if own is not None:
        return _existing(tokenizer, own)
    is_added = tokenizer.add_special_tokens({"mask_token": ADDED_TEXT}) > 0
    return MaskToken(ADDED_TEXT, tokenizer.convert_tokens_to_ids(ADDED_TEXT), is_added)


def _existing(tokenizer: PreTrainedTokenizerBase, text: str) -> MaskToken:
    """A token by its name in the vocabulary (SentencePiece writes `_` in two tokens, but has one of that name), or by
    its text."""
    if text in tokenizer.get_vocab():
        return MaskToken(text, tokenizer.convert_tokens_to_ids(text))
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"`mask_token: {text}` is {len(ids)} tokens of this tokenizer "
            f"({' '.join(tokenizer.convert_ids_to_tokens(ids))}): choose a text that is one token, or "
            "`mask_token: mask`, which adds one."
        )
    return MaskToken(text, ids[0])


# --------------------------------------------------------------------------------------------------------------------
# The model's side
# --------------------------------------------------------------------------------------------------------------------


def mean_embedding(embedding: nn.Module, known: int | None = None) -> Tensor:
    """The mean of the embeddings of the first `known` tokens (all of them), [d] in float32, as the module gives them
    out: some families scale."""
    weight: Tensor = embedding.weight
    count = len(weight) if known is None else min(known, len(weight))
    total = torch.zeros(weight.shape[1], device=weight.device)
    with torch.no_grad():
        for start in range(0, count, ROWS_PER_MEAN):
            ids = torch.arange(start, min(start + ROWS_PER_MEAN, count), device=weight.device)
            total += embedding(ids).float().sum(dim=0)
    return total / count


def give_mean_row(model: PreTrainedModel, token: MaskToken) -> None:
    """Start an added token's rows, of the embedding and of a head of its own, as the mean of the others'."""
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    with torch.no_grad():
        for matrix in matrices:
            # Rows behind the token are those that resizing added to come to a round number.
            matrix[token.id :] = matrix[: token.id].float().mean(dim=0).to(matrix.dtype)


def learn_mask_embedding(model: PreTrainedModel, token: MaskToken, start: Tensor | None = None) -> nn.Parameter:
    """Give the token a vector [d] of its own, which learns, in place of a row of the embedding matrix. `start` is a
    saved one; without it the mean of all embeddings. The token's id may lie outside of the matrix."""
    embedding = model.get_input_embeddings()
    if start is None:
        start = mean_embedding(embedding, known=token.id)
    vector = nn.Parameter(start.detach().to(embedding.weight.device, torch.float32).clone())
    embedding.register_parameter(PARAMETER, vector)
    own_forward = embedding.forward

    def forward(ids: Tensor) -> Tensor:
        is_mask = ids == token.id
        hidden: Tensor = own_forward(ids.masked_fill(is_mask, 0))
        return torch.where(is_mask.unsqueeze(-1), getattr(embedding, PARAMETER).to(hidden.dtype), hidden)

    embedding.forward = forward
    return vector


def find_mask_embedding(model: nn.Module, state_dict: dict[str, Tensor] | None = None) -> Tensor | None:
    """The learned vector of a model, or of its state dict where an engine had to collect that."""
    named = model.named_parameters() if state_dict is None else state_dict.items()
    return next((each.detach() for name, each in named if name.rpartition(".")[2] == PARAMETER), None)


def save_mask_embedding(folder: str | Path, vector: Tensor) -> None:
    """Write it beside an adapter."""
    temporary = Path(folder) / f"{EMBEDDING_NAME}.tmp"
    save_file({PARAMETER: vector.float().cpu().contiguous()}, temporary)
    os.replace(temporary, Path(folder) / EMBEDDING_NAME)


def load_mask_embedding(folders: Sequence[str | Path], **hub: Any) -> Tensor | None:
    """That of the last adapter which has one."""
    path = find_last(folders, EMBEDDING_NAME, **hub)
    return None if path is None else load_file(path)[PARAMETER]


def write_mask_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vector: Tensor, token_id: int) -> None:
    """Put a learned vector into the embedding matrix, made larger if need be: for a merged model of one piece, which
    everyone loads together with the tokenizer. Rows behind the token's that the model has already stay what they are:
    they belong to others, perhaps to the tokens of a chat template."""
    if token_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
        give_mean_row(model, MaskToken(ADDED_TEXT, token_id))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        if head is not None and head.weight is not embedding.weight:
            head.weight[token_id] = head.weight[:token_id].float().mean(dim=0).to(head.weight.dtype)
        embedding.weight[token_id] = vector.to(embedding.weight)
        given_out: Any = embedding(torch.tensor(token_id, device=embedding.weight.device)).float()
        scale = (given_out.norm() / embedding.weight[token_id].float().norm()).item()  # Gemma 3 scales
        embedding.weight[token_id] = (vector.to(given_out) / scale).to(embedding.weight.dtype)
