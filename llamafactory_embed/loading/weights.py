"""The weights of a language model on disk, whole or as an adapter, in the layout that transformers and PEFT load."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..foreign import is_plain_name, read_json_object
from ..model.tensor_files import load_safetensors, read_shapes, read_tensors
from . import pissa
from .llm2vec_adapters import AdapterFiles, ModuleNames, adapter_for_causal_lm


logger = logging.getLogger(__name__)

ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
WRAPPED_DECODER = "denoise_model."  # what DiffuLLaMA's wrapper calls its decoder
LAYER = re.compile(r"(^|\.)\d+\.")  # in the name of a weight that belongs to one of the layers

# Tensors of an adapter that have a dimension as long as the vocabulary, by what follows the name of the embedding or
# the head, and which of their dimensions that is.
VOCABULARY_DIMENSION = {"weight": 0, "base_layer.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


def find_weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, all shards of a sharded one."""
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            files = [folder / name for name in sorted(set(_read_index(folder / index).values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise ValueError(f"{folder} lacks the shards {', '.join(absent)}: copy them there.")
            return files
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (folder / name).is_file():
            return [folder / name]
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"{folder} holds an adapter: name it in `adapter_name_or_path` instead.")
    if (folder / "openvino").is_dir():
        raise ValueError(
            f"{folder} holds an OpenVINO graph and no weights for torch: load it with "
            'SentenceTransformer(…, backend="openvino"), or name the checkpoint that it was made from.'
        )
    raise ValueError(
        f"{folder} holds no weights (neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME} nor an index of shards): name the "
        "folder of a saved model."
    )


def read_names(folder: Path) -> list[str]:
    """The names of all weights in a folder, without reading the weights where the files allow it; none if it holds no
    whole model."""
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            return list(_read_index(folder / index))
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (folder / name).is_file():
            return list(read_shapes(folder / name))
    return []


def _read_index(file: Path) -> dict[str, str]:
    """The shard of each weight, a file beside the index."""
    shards = read_json_object(file).get("weight_map")
    if not isinstance(shards, dict) or not all(map(is_plain_name, shards.values())):
        raise ValueError(f"{file} must map each weight to a file of its own folder (`weight_map`): copy it again.")
    return shards


def has_wrapper(names: Iterable[str]) -> bool:
    """Whether these are the names of DiffuLLaMA's wrapper."""
    return any(name.startswith(WRAPPED_DECODER) for name in names)


# --------------------------------------------------------------------------------------------------------------------
# The model inside one of our modules
# --------------------------------------------------------------------------------------------------------------------


def save_backbone(backbone: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the language model. `state_dict` is that of the module around it if an engine (FSDP, ZeRO-3) had to
    collect it."""
    folder.mkdir(parents=True, exist_ok=True)
    own = part_of_state_dict(state_dict, "backbone.")
    if pissa.start_of(backbone) is None:
        backbone.save_pretrained(folder, state_dict=own)
    else:
        pissa.save_as_lora(backbone, folder, own)


def load_backbone_weights(backbone: Any, folder: Path) -> None:
    """Put saved weights into a language model of the same shape."""
    if not isinstance(backbone, PeftModel):
        _load_whole_weights(backbone, folder)
        return
    saved = load_safetensors(folder / ADAPTER_NAME)
    if pissa.start_of(backbone) is not None:
        saved = pissa.undo_conversion(backbone, saved)
    set_peft_model_state_dict(backbone, saved, adapter_name=backbone.active_adapters[0])


def _load_whole_weights(backbone: PreTrainedModel, folder: Path) -> None:
    """Every weight in the precision of the file: a model that is frozen in part has several, and a rounded weight
    would lose what small learning rates have taught it."""
    own = backbone.state_dict()
    names = set(read_names(folder))
    if not names <= set(own) or not set(own) <= names | set(backbone.all_tied_weights_keys):
        # transformers saves some architectures under other names than their modules have
        saved = type(backbone).from_pretrained(folder, dtype=torch.float32)  # holds every smaller precision
        backbone.load_state_dict(saved.state_dict())
        return
    for file in find_weight_files(folder):
        for name, weight in read_tensors(file):
            if weight.shape != own[name].shape:
                raise ValueError(
                    f"`{name}` in {folder} has the shape {list(weight.shape)}, but the model has "
                    f"{list(own[name].shape)}: resume with the recipe that wrote the checkpoint."
                )
            own[name].copy_(weight)


def part_of_state_dict(state_dict: dict[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """The entries of one module, by the names that it knows them by."""
    if state_dict is None:
        return None
    return {name.removeprefix(prefix): each for name, each in state_dict.items() if name.startswith(prefix)}


# --------------------------------------------------------------------------------------------------------------------
# A saved model, to be served
# --------------------------------------------------------------------------------------------------------------------


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language model inside a model that also reads images, where transformers loads the one
    from the files of the other (Qwen3.5); any other configuration as it is."""
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if getattr(language_model, "config_class", None) is not config.sub_configs.get("text_config", object):
        return config
    text = config.get_text_config()
    text.tie_word_embeddings = text.tie_word_embeddings or config.tie_word_embeddings
    return text


def load_language_model(
    folder: str | Path,
    base_model: str | None = None,
    merged_adapters: Sequence[str] = (),
    *,
    dtype: torch.dtype | str = "auto",
    with_head: bool = True,
) -> PreTrainedModel:
    """A model of one piece, or the base model with its adapters merged in their order; those in `merged_adapters` came
    before the one in the folder. The head may be left out of a model of one piece."""
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        with weights_must_fit():
            if with_head:
                return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            return AutoModel.from_pretrained(folder, config=text_part(AutoConfig.from_pretrained(folder)), dtype=dtype)

    base = base_model or PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise ValueError(
            f"The adapter in {folder} does not name its base model: set `base_model_name_or_path` in its "
            f"{ADAPTER_CONFIG_NAME}."
        )
    try:
        with weights_must_fit():
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    except OSError as error:
        raise ValueError(f"The adapter in {folder} belongs to {base}, which cannot be loaded: {error}") from error
    modules = ModuleNames.of_model(model)
    with tempfile.TemporaryDirectory() as cache:
        for adapter in [*merged_adapters, str(folder)]:
            model = merge_adapter(model, adapter_for_causal_lm(adapter, modules, cache))
    return model


def merge_adapter(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Merge an adapter, and make the vocabulary larger if it was trained with a larger one."""
    files = AdapterFiles.find(name)
    if str(files.read_config().get("init_lora_weights")).startswith("pissa_niter"):
        logger.warning(
            "%s was saved without the random decomposition that it was trained on (`pissa_iter`), so that it gives "
            "other results than in its training: train it again.",
            name,
        )
    make_room(model, files)
    try:
        return PeftModel.from_pretrained(model, files.config.parent).merge_and_unload()
    except RuntimeError as error:  # of torch, a line for each weight
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not lines:
            raise
        raise ValueError(
            f"The adapter {name} was made for a model of another size than {model.name_or_path} ({lines[0]}): name "
            "the model that it was trained on in `base_model`."
        ) from error


def make_room(model: PreTrainedModel, adapter: AdapterFiles) -> None:
    """An adapter that was trained with `resize_vocab: true` brings matrices with more rows than the base model's."""
    embedding = model.get_input_embeddings()
    name_of: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    matrices = [name_of[each] for each in (embedding, model.get_output_embeddings()) if each is not None]
    sizes = {
        f"base_model.model.{matrix}.{tensor}": dimension
        for matrix in matrices
        for tensor, dimension in VOCABULARY_DIMENSION.items()
    }
    shapes = adapter.parameter_shapes()
    rows = max((shapes[name][dimension] for name, dimension in sizes.items() if name in shapes), default=0)
    if rows > embedding.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter has the new rows


@contextlib.contextmanager
def weights_must_fit() -> Iterator[None]:
    """Within this block, transformers refuses a checkpoint none of whose weights belongs to a layer of the model. It
    would start from random numbers instead, and say so in its log only."""
    load: Any = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: type[PreTrainedModel], name: object, *args: Any, **kwargs: Any) -> Any:
        with_info = kwargs.pop("output_loading_info", False)
        model, info = load(cls, name, *args, output_loading_info=True, **kwargs)
        check_that_weights_fit(model, info, str(name))
        return (model, info) if with_info else model

    with mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


def check_that_weights_fit(model: nn.Module, loading_info: Mapping[str, Any], name: str) -> None:
    """`loading_info` is what transformers tells of a checkpoint that it has loaded."""
    layers = {weight for weight, _ in model.named_parameters() if LAYER.search(weight)}
    if not layers or not layers <= set(loading_info["missing_keys"]):
        return
    unexpected = sorted(loading_info["unexpected_keys"])
    if has_wrapper(unexpected):
        raise ValueError(
            f"{name} holds weights in DiffuLLaMA's layout, which transformers does not load: name it in "
            "`checkpoint_dir` of `stage: ddm`, and the model that was adapted in `model_name_or_path`."
        )
    instead = f"they have names like `{unexpected[0]}`" if unexpected else "they belong to no layer"
    raise ValueError(
        f"None of the weights in {name} fits a layer of {type(model).__name__} ({instead}): name a checkpoint of the "
        "architecture in its config.json."
    )
