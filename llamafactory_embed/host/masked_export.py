"""What `llamafactory-cli export` leaves out of a model that was trained to predict masked tokens.

That is the token itself and its embedding, where that is a vector beside the adapter, attention to both sides, and the
record of all that. Hooked into the two functions by which the host's export loads tokenizer and model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from transformers import PreTrainedModel

from attention_patch import patch_attention

from ..model.mask_token import MaskedTokenRecord, find_mask_token, load_mask_embedding, write_mask_row
from . import contract


if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments


def check(tuner: Any) -> None:
    """The host's export must still load tokenizer and model by these two functions."""
    contract.check_signature(contract.attribute(tuner, "load_tokenizer"), "model_args")
    contract.check_signature(
        contract.attribute(tuner, "load_model"),
        "tokenizer",
        "model_args",
        "finetuning_args",
        "is_trainable",
        "add_valuehead",
    )


@contextlib.contextmanager
def completed(tuner: Any, model_args: ModelArguments) -> Iterator[None]:
    """The host's export meanwhile writes everything, if the checkpoint is one that remembers its mask token."""
    folders = [model_args.model_name_or_path]
    for name in model_args.adapter_name_or_path or []:
        folders.append(os.path.join(name, model_args.adapter_folder or "") if os.path.isdir(name) else name)
    hub = {"token": model_args.hf_hub_token, "revision": model_args.model_revision, "cache_dir": model_args.cache_dir}
    record = MaskedTokenRecord.find(folders[-1:], **hub)  # what was trained last says what the model is
    if record is None:
        yield
        return
    vector = load_mask_embedding(folders, **hub)
    host_load_tokenizer, host_load_model = tuner.load_tokenizer, tuner.load_model

    def load_tokenizer(model_args: ModelArguments) -> Any:
        """With the mask token, before a template adds others: the order in which training adds them."""
        module = host_load_tokenizer(model_args)
        if vector is not None:
            found = find_mask_token(module["tokenizer"], "mask")
            if found.id != record.mask_token_id:
                raise ValueError(
                    f"`model_name_or_path: {model_args.model_name_or_path}` is not the model that {folders[-1]} was "
                    f"trained on: the token behind its vocabulary has the id {found.id}, not {record.mask_token_id}; "
                    f"name {record.base_model or 'that model'}."
                )
        return module

    def load_model(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
        model = host_load_model(tokenizer, *args, **kwargs)
        if not isinstance(model, PreTrainedModel):
            return model  # with an adapter that cannot be merged, which the host refuses
        if vector is not None:
            write_mask_row(model, tokenizer, vector, record.mask_token_id)
        patch_attention(model, "bidirectional", sliding_window=record.sliding_window)  # config.json will say it
        whole = replace(record, base_model=None, merged_adapters=())
        save_pretrained = model.save_pretrained

        def save_with_record(save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Also called for what goes to the hub."""
            save_pretrained(save_directory, *args, **kwargs)
            whole.save(Path(save_directory))

        model.save_pretrained = save_with_record
        return model

    with mock.patch.multiple(tuner, load_tokenizer=load_tokenizer, load_model=load_model):
        yield
