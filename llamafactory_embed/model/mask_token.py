"""The token that hides another: found in the tokenizer or added to it, and its embedding.

LLM2Vec and DiffuLLaMA let a natural token double as the mask, or add one whose embedding is neither trained nor saved.
Here an added token's embedding starts as the mean of all and is trained. With all weights trained it is a row of the
embedding matrix. With an adapter it is a separate vector, saved beside an adapter that stays an ordinary one: that
loads on the unchanged base model wherever adapters are loaded, and only a program that needs the mask token reads the
vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import whole_file
from .records import CheckpointRecord, find_last
from .tensor_files import load_safetensors


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
class MaskedTokenRecord(CheckpointRecord):
    """What a checkpoint remembers so that masked tokens are predicted as they were trained."""

    file_name: ClassVar[str] = RECORD_NAME
    described_as: ClassVar[str] = "a checkpoint of a model that predicts masked tokens"

    mask_token: str
    mask_token_id: int
    shift: bool
    base_model: str | None = None
    """The model below the adapter, for a checkpoint that holds an adapter only."""
    merged_adapters: tuple[str, ...] = ()
    """Adapters merged into the base model before this one, in that order."""
    block_size: int | None = None
    """Of block diffusion: no token sees a block after its own."""
    sliding_window: Literal["keep", "ignore"] = "keep"
    """Full weights say it in their config.json, too; an adapter only here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "merged_adapters", tuple(self.merged_adapters))  # a list in JSON


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
    choice = asked or ("mask" if tokenizer.mask_token is not None else otherwise)
    if choice == "mask":
        return _own_or_added(tokenizer, family_token)
    if choice == "eos":
        if tokenizer.eos_token is None:
            raise ValueError("`mask_token: eos` needs a tokenizer with an EOS token, and this one has none.")
        return _existing(tokenizer, tokenizer.eos_token)
    return _existing(tokenizer, BLANK_TEXT if choice == "blank" else choice)


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


def mean_embedding(embedding: nn.Module, count: int | None = None) -> Tensor:
    """The mean of the embeddings of the first `count` tokens (None: all), [d] in float32, as the module gives them
    out: some families scale."""
    weight: Tensor = embedding.weight
    count = len(weight) if count is None else min(count, len(weight))
    total = torch.zeros(weight.shape[1], device=weight.device)
    with torch.no_grad():
        for start in range(0, count, ROWS_PER_MEAN):
            ids = torch.arange(start, min(start + ROWS_PER_MEAN, count), device=weight.device)
            total += embedding(ids).float().sum(dim=0)
    return total / count


def give_mean_row(model: PreTrainedModel, token: MaskToken) -> None:
    """Start an added token's rows, of the embedding and of an untied head, as the mean of the others'."""
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    with torch.no_grad():
        for matrix in matrices:
            # Rows after the token's are those that resizing added to come to a round number.
            matrix[token.id :] = matrix[: token.id].float().mean(dim=0).to(matrix.dtype)


def learn_mask_embedding(model: PreTrainedModel, token: MaskToken, start: Tensor | None = None) -> nn.Parameter:
    """Give the token a vector [d] that learns, in place of a row of the embedding matrix. `start` is a saved one;
    without it the mean of all embeddings. The token's id may lie outside of the matrix."""
    embedding = model.get_input_embeddings()
    if start is None:
        start = mean_embedding(embedding, count=token.id)
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
    with whole_file(Path(folder) / EMBEDDING_NAME) as temporary:
        save_file({PARAMETER: vector.float().cpu().contiguous()}, temporary)


def load_mask_embedding(folders: Sequence[str | Path], **hub: Any) -> Tensor | None:
    """That of the last adapter which has one."""
    path = find_last(folders, EMBEDDING_NAME, **hub)
    return None if path is None else load_safetensors(path)[PARAMETER]


def write_mask_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vector: Tensor, token_id: int) -> None:
    """Put a learned vector into the embedding matrix, made larger if need be: for a merged model of one piece, which
    everyone loads together with the tokenizer. Rows after the token's that the model has already stay what they are:
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
