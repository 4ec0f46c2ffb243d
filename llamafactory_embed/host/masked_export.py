"""What `llamafactory-cli export` leaves out of a model that was trained to predict masked tokens: the token, its
embedding if that is a vector beside the adapter, attention to both sides, and the record of all that.

It is added in the two functions by which the host's export loads tokenizer and model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from transformers import PreTrainedModel

from attention_patch import patch_attention

from ..loading.masked_tokens import resolve_masked_tokens
from ..model.mask_token import MaskedTokenRecord, load_mask_embedding, write_mask_row
from . import contract


if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments


def check(tuner: Any) -> None:
    """The host's export must still load tokenizer and model by these two functions."""
    contract.check_signature(contract.attribute(tuner, "load_tokenizer"), "model_args")
    contract.check_load_model(tuner)


@contextlib.contextmanager
def completed(tuner: Any, model_args: ModelArguments) -> Iterator[None]:
    """Within this block the host's export writes everything, if the checkpoint has a record of its mask token."""
    from ..loading.backbone import adapter_folders, hub_options, load_config  # they import the host's loader

    folders = [model_args.model_name_or_path, *adapter_folders(model_args)]
    hub = hub_options(model_args)
    record = MaskedTokenRecord.find(folders[-1:], **hub)  # what was trained last says what the model is
    if record is None:
        yield
        return
    vector = load_mask_embedding(folders, **hub)
    host_load_tokenizer, host_load_model = tuner.load_tokenizer, tuner.load_model

    def load_tokenizer(model_args: ModelArguments) -> Any:
        """With the mask token, before a template adds others: the order in which training adds them."""
        module = host_load_tokenizer(model_args)
        resolve_masked_tokens(None, record, load_config(model_args), module["tokenizer"])
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
