"""Checkpoints of adapted models, in the layout of transformers or of DiffuLLaMA, as folders that transformers loads.

DiffuLLaMA (Gong et al. 2024, arXiv 2410.17891) holds its model in a wrapper: `denoise_model.*` is the decoder, and
`embed_tokens` and `lm_head` stand beside it. transformers would take such weights for missing ones, and start from
random numbers. Here every name is accounted for: the original ignored what it did not find, and a sharded checkpoint
altogether.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..model.mask_token import MaskedTokenRecord


WRAPPED_DECODER = "denoise_model."
# Tokens of the vocabulary that hide others in DiffuLLaMA's published models, by the architecture below. Where the
# tokenizer has a mask token of its own, that one does.
WRAPPED_MASKS = {"gpt2": 10541, "llama": 811}
# Buffers that older versions of transformers saved and newer ones compute.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
LONGEST_LIST = 8  # names that an error message shows
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class ModelNames:
    """What a model's own checkpoint holds."""

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


def has_wrapper(names: Iterable[str]) -> bool:
    """Whether these are the names of DiffuLLaMA's wrapper."""
    return any(name.startswith(WRAPPED_DECODER) for name in names)


def is_wrapped(folder: str | Path) -> bool:
    """Whether a folder holds weights in DiffuLLaMA's wrapper, which transformers would not find."""
    folder = Path(folder)
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            return has_wrapper(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"])
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (folder / name).is_file():
            return has_wrapper(read_names(folder / name))
    return False


def rename_weights(found: Iterable[str], names: ModelNames, where: str) -> dict[str, str]:
    """The checkpoint's names → the model's; a ValueError that lists what is missing or unexpected."""
    found = list(found)
    wrapped = has_wrapper(found)
    renamed = {name: names.of_wrapped(name) if wrapped else name for name in found}
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


def find_weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, all shards of a sharded one."""
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            files = [folder / name for name in sorted(set(weight_map.values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise ValueError(f"{folder} lacks the shards {', '.join(absent)}: copy them there.")
            return files
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (folder / name).is_file():
            return [folder / name]
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds an adapter: name it in `adapter_name_or_path` instead.")
    raise ValueError(
        f"{folder} holds no weights (neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME} nor an index of shards): name the "
        "folder of a saved model."
    )


def read_names(file: Path) -> list[str]:
    """Without reading the weights, where the file allows it."""
    if file.suffix != ".safetensors":
        return list(torch.load(file, map_location="meta", weights_only=True))
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def read_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix != ".safetensors":
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
        return
    with safe_open(file, framework="pt") as opened:
        names = opened.keys()  # the file itself is no mapping
        for name in names:
            yield name, opened.get_tensor(name)


def fetch(name: str | Path, **hub: Any) -> Path:
    """The folder of a model or adapter, downloaded if it was named by its place on the hub: weights as safetensors, or
    as bin where there are no others."""
    if os.path.isdir(name):
        return Path(name)
    try:
        folder = Path(
            snapshot_download(str(name), allow_patterns=[*SMALL_FILES, "*.safetensors"], ignore_patterns="*/*", **hub)
        )
        if not any(folder.glob("*.safetensors")):
            snapshot_download(str(name), allow_patterns=[*SMALL_FILES, "*.bin"], ignore_patterns="*/*", **hub)
    except (OSError, ValueError) as error:  # no such repository, no connection, no valid name
        raise ValueError(f"{name} is no folder, and the hub does not give it: {error}") from error
    return folder


def convert_checkpoint(
    source: Path, base_model: str, destination: Path, *, trust_remote_code: bool = False, **hub: Any
) -> Path:
    """Write the checkpoint into `destination` under the names of transformers, file by file.

    Its configuration is the checkpoint's own, or that of the base model with the checkpoint's vocabulary size. A
    tokenizer comes along if the checkpoint has one, otherwise the base model's, and what is known of the mask token.
    """
    files = find_weight_files(source)
    options = {"trust_remote_code": trust_remote_code, **hub}
    own_config = (source / "config.json").is_file()
    config = AutoConfig.from_pretrained(source if own_config else base_model, **options)
    with torch.device("meta"):
        names = ModelNames.of_model(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    found = [name for file in files for name in read_names(file)]
    renamed = rename_weights(found, names, str(source))

    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as unfinished:
        weight_map: dict[str, str] = {}
        total = 0
        for number, file in enumerate(files, start=1):
            target = SAFE_WEIGHTS_NAME if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
            weights = {renamed[old]: each.contiguous() for old, each in read_weights(file) if old in renamed}
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
        record = describe_mask(source, has_wrapper(found), config, tokenizer)
        if record is not None:
            record.save(unfinished)
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, destination)
        Path(unfinished).mkdir()  # what TemporaryDirectory removes
    return destination


def describe_mask(
    source: Path, wrapped: bool, config: Any, tokenizer: PreTrainedTokenizerBase
) -> MaskedTokenRecord | None:
    """What is known of a checkpoint's mask token: what it says itself, or how DiffuLLaMA trained its wrapped ones."""
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
    """All shapes must be the model's, but for the rows of a vocabulary with more or fewer tokens."""
    for name, weight in weights.items():
        expected, found = names.shapes[name], tuple(weight.shape)
        is_vocabulary = name in (names.input_embedding, names.head)
        if found != expected and not (is_vocabulary and found[1:] == expected[1:]):
            raise ValueError(
                f"`{name}` in {source} has the shape {list(found)}, but the model has {list(expected)}: name a "
                "checkpoint of the size of its config.json, or of the base model where it has none."
            )
