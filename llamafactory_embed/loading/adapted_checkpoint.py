"""Checkpoints of adapted models, in the layout of transformers or of DiffuLLaMA, as folders that transformers loads.

DiffuLLaMA (Gong et al. 2024, arXiv 2410.17891) holds its model in a wrapper: `denoise_model.*` is the decoder, and
`embed_tokens` and `lm_head` stand beside it. transformers would take such weights for missing ones, and start from
random numbers. Here every name is accounted for: the original ignored what it did not find, and a sharded checkpoint
altogether.

`checkpoint_dir` starts a run from such a checkpoint: it becomes a folder in the layout of transformers, which the host
then loads like any other (quantized, sharded, with adapters). The same happens to a `model_name_or_path` in
DiffuLLaMA's layout.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import parse_safetensors_file_metadata
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..model.mask_token import MaskedTokenRecord
from ..model.tensor_files import read_tensors
from .repository import Repository
from .weights import WRAPPED_DECODER, find_weight_files, has_wrapper, read_names


if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments, TrainingArguments


CONVERTED_FOLDER = "converted_checkpoint"  # below `output_dir`
# Tokens of the vocabulary that hide others in DiffuLLaMA's published models, by the architecture below; a mask token
# of the tokenizer goes before them.
WRAPPED_MASKS = {"gpt2": 10541, "llama": 811}
# Buffers that older versions of transformers saved and newer ones compute.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
LONGEST_LIST = 8  # names that an error message shows


@dataclass(frozen=True)
class ModelNames:
    """The names and shapes in a model's checkpoint."""

    shapes: Mapping[str, tuple[int, ...]]
    decoder_prefix: str  # with its dot
    input_embedding: str
    head: str
    tied: frozenset[str]
    """Those of the names that share another's weights and are not needed."""

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> ModelNames:
        name_of = {id(module): name for name, module in model.named_modules()}
        head = model.get_output_embeddings()
        return cls(
            shapes={name: tuple(each.shape) for name, each in model.state_dict().items()},
            decoder_prefix=f"{model.base_model_prefix}.",
            input_embedding=f"{name_of[id(model.get_input_embeddings())]}.weight",
            head=f"{name_of[id(head)]}.weight",
            tied=frozenset(model.all_tied_weights_keys),
        )

    def of_wrapped(self, name: str) -> str:
        """The name of transformers for one of DiffuLLaMA's wrapper."""
        if name.startswith(WRAPPED_DECODER):
            return self.decoder_prefix + name.removeprefix(WRAPPED_DECODER)
        return {"embed_tokens.weight": self.input_embedding, "lm_head.weight": self.head}.get(name, name)


def is_wrapped(folder: str | Path) -> bool:
    """Whether a folder holds weights in DiffuLLaMA's wrapper, which transformers would not find."""
    return has_wrapper(read_names(Path(folder)))


def rename_weights(saved: Sequence[str], names: ModelNames, where: str) -> dict[str, str]:
    """The checkpoint's names → the model's; a ValueError that lists what is missing or unexpected."""
    wrapped = has_wrapper(saved)
    renamed = {name: names.of_wrapped(name) if wrapped else name for name in saved}
    renamed = {old: new for old, new in renamed.items() if not COMPUTED.search(new) or new in names.shapes}
    present = set(renamed.values())
    missing = [name for name in names.shapes if name not in present | names.tied]
    unexpected = [old for old, new in renamed.items() if new not in names.shapes]
    if missing or unexpected:
        parts = [
            f"{what} {len(listed)} ({', '.join(listed[:LONGEST_LIST])}{', …' if len(listed) > LONGEST_LIST else ''})"
            for what, listed in (("lacks", missing), ("has unexpected", unexpected))
            if listed
        ]
        raise ValueError(
            f"{where} does not hold the weights of this model: it {' and '.join(parts)}; name a checkpoint of the "
            "architecture of its config.json, or of the base model where it has none."
        )
    return {old: new for old, new in renamed.items() if new not in names.tied}


def convert_checkpoint(
    source: Path, base_model: str, destination: Path, *, trust_remote_code: bool = False, **hub: Any
) -> Path:
    """Write the checkpoint into `destination` under the names of transformers, file by file.

    Its configuration is the checkpoint's own, or that of the base model with the checkpoint's vocabulary size. A
    tokenizer comes along, the checkpoint's or else the base model's, and a record of the mask token if one is known.
    """
    files = find_weight_files(source)
    options = {"trust_remote_code": trust_remote_code, **hub}
    own_config = (source / "config.json").is_file()
    config = AutoConfig.from_pretrained(source if own_config else base_model, **options)
    with torch.device("meta"):
        names = ModelNames.of_model(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    saved = read_names(source)
    renamed = rename_weights(saved, names, str(source))

    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as unfinished:
        weight_map: dict[str, str] = {}
        total = 0
        for number, file in enumerate(files, start=1):
            target = SAFE_WEIGHTS_NAME if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
            weights = {renamed[old]: each.contiguous() for old, each in read_tensors(file) if old in renamed}
            check_shapes(weights, names, source)
            if names.input_embedding in weights:
                config.vocab_size = len(weights[names.input_embedding])
            save_file(weights, Path(unfinished, target), metadata={"format": "pt"})
            weight_map |= dict.fromkeys(weights, target)
            total += sum(each.numel() * each.element_size() for each in weights.values())
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            Path(unfinished, SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")
        config.save_pretrained(unfinished)
        has_tokenizer = (source / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(source if has_tokenizer else base_model, **options)
        tokenizer.save_pretrained(unfinished)
        record = describe_mask(source, has_wrapper(saved), config, tokenizer)
        if record is not None:
            record.save(unfinished)
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, destination)
        Path(unfinished).mkdir()  # what TemporaryDirectory removes
    return destination


def describe_mask(
    source: Path, wrapped: bool, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> MaskedTokenRecord | None:
    """The mask token of a checkpoint: what its record says, or how DiffuLLaMA trained its wrapped models."""
    own = MaskedTokenRecord.find([source])
    if own is not None:
        return replace(own, base_model=None, merged_adapters=())  # of one piece
    if not wrapped:
        return None
    mask_id = tokenizer.mask_token_id if tokenizer.mask_token is not None else WRAPPED_MASKS.get(config.model_type)
    if mask_id is None or mask_id >= min(config.vocab_size, len(tokenizer)):
        return None
    return MaskedTokenRecord(tokenizer.convert_ids_to_tokens(mask_id), mask_id, shift=True)


def check_shapes(weights: Mapping[str, Tensor], names: ModelNames, source: Path) -> None:
    """Refuse other shapes than the model's, except for the rows of a larger or smaller vocabulary."""
    for name, weight in weights.items():
        expected, shape = names.shapes[name], tuple(weight.shape)
        is_vocabulary = name in (names.input_embedding, names.head)
        if shape != expected and not (is_vocabulary and shape[1:] == expected[1:]):
            raise ValueError(
                f"`{name}` in {source} has the shape {list(shape)}, but the model has {list(expected)}: name a "
                "checkpoint of the size of its config.json, or of the base model where it has none."
            )


def start_from_checkpoint(
    model_args: ModelArguments, checkpoint_dir: str | None, training_args: TrainingArguments
) -> ModelArguments:
    """The host's model arguments, with the checkpoint in the place of the base model's weights."""
    option, name = "checkpoint_dir", checkpoint_dir
    if name is None:
        option, name = "model_name_or_path", model_args.model_name_or_path
        if not is_wrapped_start(name, model_args):
            return model_args
        if not os.path.isdir(name) and model_args.model_revision not in (None, "main"):
            name = f"{name}@{model_args.model_revision}"
    hub = {"token": model_args.hf_hub_token, "cache_dir": model_args.cache_dir}
    destination = Path(training_args.output_dir, CONVERTED_FOLDER)
    with training_args.main_process_first(desc="converting the checkpoint"):
        try:
            source = Repository.open(name, **hub).with_weights()
            if source.resolve() == destination.resolve():  # an earlier run has converted it
                return replaced(model_args, destination)
            if training_args.process_index == 0 and destination.is_dir():
                shutil.rmtree(destination)  # of an earlier run, perhaps from another checkpoint
            if not destination.is_dir():
                convert_checkpoint(
                    source,
                    model_args.model_name_or_path,
                    destination,
                    trust_remote_code=model_args.trust_remote_code,
                    revision=model_args.model_revision,
                    **hub,
                )
        except ValueError as error:
            raise ValueError(f"`{option}`: {error}") from error
    return replaced(model_args, destination)


def is_wrapped_start(name: str, model_args: ModelArguments) -> bool:
    """Whether `model_name_or_path` names weights in DiffuLLaMA's wrapper. Of a single file on the hub only the header
    is read; what cannot be asked is left to the host."""
    if os.path.isdir(name):
        return is_wrapped(name)
    hub = {"revision": model_args.model_revision, "token": model_args.hf_hub_token}
    try:
        index = cached_file(
            name,
            SAFE_WEIGHTS_INDEX_NAME,
            cache_dir=model_args.cache_dir,
            _raise_exceptions_for_missing_entries=False,
            **hub,
        )
        if index is not None:
            return has_wrapper(read_names(Path(index).parent))
        return has_wrapper(parse_safetensors_file_metadata(name, SAFE_WEIGHTS_NAME, **hub).tensors)
    except (OSError, ValueError):
        return False


def replaced(model_args: ModelArguments, folder: Path) -> ModelArguments:
    """The same arguments over another model."""
    started = copy.copy(model_args)
    started.model_name_or_path = str(folder)
    return started
