"""Folders of sentence-transformers, read so that our packed engine embeds what sentence-transformers would.

`modules.json` lists Transformer, Pooling, perhaps Dense layers and Normalize, in the classic layout and in that of
release 6. What else a folder may hold (other modules, several poolings at once, chat templates, code of its own) is
`UnknownModulesError`: sentence-transformers itself can embed with it.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from attention_patch import Backend, is_encoder

from ..foreign import is_plain_name, read_foreign_json, read_json_object
from ..hparams.embedding import EmbeddingOptions
from ..model.dense import ACTIVATIONS, DenseLayer
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from .checkpoint import default_device, load_backbone
from .weights import find_weight_files, read_tensors


MODULES_NAME = "modules.json"
# sentence-transformers has named the settings of its Transformer module after architectures, too.
TRANSFORMER_SETTINGS = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert",
                        "albert", "xlm-roberta", "xlnet")]  # fmt: skip
MODEL_SETTINGS = "config_sentence_transformers.json"

POOLINGS: dict[str, Any] = {"mean": "mean", "weightedmean": "weighted_mean", "lasttoken": "last", "cls": "bos"}
CLASSIC_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that `encode_document` looks for, in its order

# Settings of the Transformer module that do not change a vector.
HARMLESS = {"max_seq_length", "do_lower_case", "query_length", "document_length", "unpad_inputs"}
HARMLESS_ARGUMENTS = {"torch_dtype", "dtype", "attn_implementation", "padding_side", "use_cache", "revision"}
# Encoders of which a packed row gives exactly what a padded batch does, as tests show.
ENCODERS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta", "modernbert", "gemma3_text")

Attention = Literal["bidirectional", "causal"]


class UnknownModulesError(ValueError):
    """What a folder holds beyond the modules that our engine has: a sentence that says what."""


@dataclasses.dataclass(frozen=True)
class Module:
    """An entry of modules.json, with its settings."""

    kind: str
    folder: Path
    settings: Mapping[str, Any]


def is_sentence_transformers_folder(folder: str | Path) -> bool:
    """Whether sentence-transformers has written it."""
    return Path(folder, MODULES_NAME).is_file()


def read_sentence_transformers_folder(
    folder: str | Path, settings: Mapping[str, Any] | None = None
) -> EmbeddingConfig:
    """How the folder's model embeds, in our words; `settings` are fields that the caller knows better. Each prompt is
    a task of that name whose instruction stands in front of the text as it is."""
    folder = Path(folder)
    settings = dict(settings or {})
    transformer, pooling, dense, normalize = _sort_modules(folder)
    model = read_architecture(folder)
    attention = settings.get("attention") or find_attention(folder, model)
    saved = _read_json(folder / MODEL_SETTINGS)
    if saved.get("truncate_dim"):
        raise _unknown(folder, f"it cuts its vectors to {saved['truncate_dim']} numbers")
    length = _longest_text(folder, transformer.settings, model)
    options = EmbeddingOptions(
        attention=attention,
        pooling=_read_pooling(folder, pooling),
        query_max_length=transformer.settings.get("query_length"),
        document_max_length=transformer.settings.get("document_length"),
        normalize_embeddings=normalize,
    )
    config = EmbeddingConfig.from_options(
        options,
        cutoff_len=length,
        similarity=_read_similarity(folder, saved),
        matryoshka_dims=getattr(model, "matryoshka_dimensions", None),
        appends_eos=False,  # the tokenizer's post-processor alone decides
    )
    read = _prompt_fields(folder, saved, pooling) | {"dense": [_read_dense(folder, each) for each in dense]}
    return dataclasses.replace(config, **(read | settings))


def load_sentence_transformers_folder(
    folder: str | Path,
    config: EmbeddingConfig | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> EmbeddingModel:
    """Load it for inference. `config` is what was read of it before."""
    config = config or read_sentence_transformers_folder(folder)
    model = EmbeddingModel(load_backbone(folder, config, dtype), config, backend=backend)
    load_dense_modules(model, folder)
    return model.requires_grad_(False).eval().to(device or default_device())


def read_dense_layers(folder: str | Path) -> list[DenseLayer]:
    """The layers behind the folder's pooling."""
    folder = Path(folder)
    return [_read_dense(folder, module) for module in _read_modules(folder) if module.kind == "Dense"]


def load_dense_modules(model: EmbeddingModel, folder: str | Path) -> None:
    """Put the weights of the folder's Dense modules into the layers behind the pooling."""
    model.dense.load_state_dict(read_dense_weights(folder))


def read_dense_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of the folder's Dense modules, by their names in the layers behind the pooling."""
    weights: dict[str, Tensor] = {}
    modules = [module for module in _read_modules(Path(folder)) if module.kind == "Dense"]
    for index, module in enumerate(modules):
        for file in find_weight_files(module.folder):
            weights |= {name.replace("linear.", f"layers.{index}."): each for name, each in read_tensors(file)}
    return {name: each.float() for name, each in weights.items()}


def read_architecture(folder: Path) -> PretrainedConfig:
    """The language model's configuration; code beside it is neither run nor asked for."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        raise _unknown(folder, "transformers does not know its architecture") from error


def find_attention(folder: str | Path, config: PretrainedConfig) -> Attention:
    """How transformers lets the tokens of this model attend: decoders only back, unless the configuration says
    otherwise."""
    if "AutoModel" in (getattr(config, "auto_map", None) or {}):
        raise _unknown(
            Path(folder), "its model brings code of its own, and whether that is causal is not in the configuration"
        )
    try:
        with torch.device("meta"):
            encoder = is_encoder(AutoModel.from_config(config, trust_remote_code=False))
    except ValueError as error:
        raise _unknown(Path(folder), str(error)) from error
    if not encoder:
        turned = getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", False)
        return "bidirectional" if turned else "causal"
    if config.model_type not in ENCODERS:
        raise _unknown(Path(folder), f"its architecture is {config.model_type}, which was not tried in packed rows")
    return "bidirectional"


# --------------------------------------------------------------------------------------------------------------------
# What modules.json lists
# --------------------------------------------------------------------------------------------------------------------


def _sort_modules(folder: Path) -> tuple[Module, Module, list[Module], bool]:
    """Transformer, Pooling, the Dense layers, and whether Normalize ends them."""
    modules = _read_modules(folder)
    kinds = [module.kind for module in modules]
    normalize = kinds[-1:] == ["Normalize"]
    dense = modules[2 : len(modules) - normalize]
    if kinds[:2] != ["Transformer", "Pooling"] or any(module.kind != "Dense" for module in dense):
        raise _unknown(folder, f"its modules are {', '.join(kinds)}")
    transformer = modules[0]
    if transformer.folder != folder:
        raise _unknown(folder, f"its language model lies in {transformer.folder.name}")
    _check_transformer(folder, transformer.settings)
    return transformer, modules[1], dense, normalize


def _read_modules(folder: Path) -> list[Module]:
    modules = []
    entries = read_foreign_json(folder / MODULES_NAME)
    if not isinstance(entries, list) or not all(map(_is_module, entries)):
        raise ValueError(
            f"{folder / MODULES_NAME} must list modules with their `type` and `path`, folders in this one: copy it "
            "from the checkpoint again."
        )
    for entry in entries:
        package, _, kind = entry["type"].rpartition(".")
        own = folder / entry["path"] if entry["path"] else folder
        names = TRANSFORMER_SETTINGS if kind == "Transformer" else ["config.json"]
        found = (
            [own / name for name in names if (own / name).is_file()] if own != folder or kind == "Transformer" else []
        )
        if not package.startswith("sentence_transformers."):
            kind = entry["type"]
        modules.append(Module(kind, own, _read_json(found[0]) if found else {}))
    return modules


def _is_module(entry: object) -> bool:
    """Whether an entry of modules.json is what sentence-transformers writes, and leads nowhere else."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return False
    return entry.get("path") == "" or is_plain_name(entry.get("path"))


def _check_transformer(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that change what the model reads."""
    expected = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    for name, value in settings.items():
        if name in (
            "model_args",
            "model_kwargs",
            "tokenizer_args",
            "processor_kwargs",
            "config_args",
            "config_kwargs",
        ):
            same = isinstance(value, dict) and value.keys() <= HARMLESS_ARGUMENTS
        elif name == "modality_config":
            same = isinstance(value, dict) and value.keys() == {"text"}
        else:
            same = name in HARMLESS or value in (None, {}, expected.get(name))
        if not same:
            raise _unknown(folder, f"its Transformer module sets `{name}`")
    tokenizer = _read_json(folder / "tokenizer_config.json")
    if tokenizer.get("truncation_side") == "left":
        raise _unknown(folder, "its tokenizer cuts long texts at their beginning")
    if settings.get("do_lower_case") and not _lowercases(_read_json(folder / "tokenizer.json").get("normalizer")):
        raise _unknown(folder, "its texts are put into small letters (`do_lower_case`)")


def _lowercases(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether the normalizer of a tokenizer.json puts a text into small letters."""
    if not isinstance(normalizer, Mapping):
        return False
    inner = any(_lowercases(each) for each in normalizer.get("normalizers") or [])
    return inner or normalizer.get("type") == "Lowercase" or bool(normalizer.get("lowercase"))


def _longest_text(folder: Path, settings: Mapping[str, Any], config: PretrainedConfig) -> int:
    """`max_seq_length`, else what tokenizer and model allow, as sentence-transformers has it."""
    longest = settings.get("max_seq_length")
    if longest and not isinstance(longest, int):
        raise _unknown(folder, f"its `max_seq_length` is {reprlib.repr(longest)}")
    if longest:
        return int(longest)
    lengths = [
        _read_json(folder / "tokenizer_config.json").get("model_max_length"),
        getattr(config, "max_position_embeddings", None),
    ]
    known = [int(length) for length in lengths if isinstance(length, (int, float)) and 0 < length < math.inf]
    if not known:
        raise _unknown(folder, "it does not say how long a text may be")
    return min(known)


def _read_pooling(folder: Path, module: Module) -> Any:
    modes = module.settings.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in CLASSIC_POOLINGS.items() if module.settings.get(name)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in list(POOLINGS):
        raise _unknown(folder, f"its pooling is {' and '.join(map(str, modes))}")
    return POOLINGS[modes[0]]


def _read_dense(folder: Path, module: Module) -> DenseLayer:
    settings = module.settings
    if settings.get("use_residual") or settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise _unknown(folder, f"{module.folder.name} is more than a linear layer of the embedding")
    function = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    size, bias = settings.get("out_features"), settings.get("bias", True)
    if not isinstance(size, int) or not isinstance(bias, bool):
        raise _unknown(folder, f"{module.folder.name} does not say its size (`out_features`, `bias`)")
    names = {type(make()).__name__: name for name, make in ACTIVATIONS.items()}
    package, _, kind = function.rpartition(".")
    if not package.startswith("torch.nn") or kind not in names:
        raise _unknown(folder, f"the activation of {module.folder.name} is {function}")
    return DenseLayer(size, bias, names[kind])


# --------------------------------------------------------------------------------------------------------------------
# What config_sentence_transformers.json says
# --------------------------------------------------------------------------------------------------------------------


def read_saved_prompts(folder: str | Path) -> dict[str, str]:
    """The prompts by their names, empty ones included."""
    path = Path(folder, MODEL_SETTINGS)
    saved = _read_json(path).get("prompts") or {}
    if not isinstance(saved, dict) or not all(isinstance(each, str | None) for each in saved.values()):
        raise ValueError(f"{path}: `prompts` must map names to texts: copy it from the checkpoint again.")
    return {name: prompt or "" for name, prompt in saved.items()}


def read_default_prompt_name(folder: str | Path) -> str | None:
    """Which of the prompts texts get that are encoded without a word about their prompt."""
    name = _read_json(Path(folder, MODEL_SETTINGS)).get("default_prompt_name")
    return None if name is None else str(name)


def _prompt_fields(folder: Path, saved: Mapping[str, Any], pooling: Module) -> dict[str, Any]:
    """Fields of `EmbeddingConfig`: a task for each prompt, and how texts without a task are written."""
    prompts = read_saved_prompts(folder)
    if any(prompts.values()) and not pooling.settings.get("include_prompt", True):
        raise _unknown(folder, "its pooling leaves the prompt out, counted as sentence-transformers counts it")
    otherwise = str(saved.get("default_prompt_name") or "")
    document = next((prompts[name] for name in (*DOCUMENT_PROMPTS, otherwise) if prompts.get(name)), "")
    if "{" in document:
        raise _unknown(folder, f"its prompt for documents holds a brace: {document!r}")
    return {
        "instructions": {"query": ""} | prompts | {"document": document},
        "query_template": "verbatim",
        "document_template": f"{document}{{text}}",
        "default_task": otherwise if otherwise in prompts and not prompts.get("query") else "query",
    }


def _read_similarity(folder: Path, saved: Mapping[str, Any]) -> Literal["cosine", "dot"]:
    name: Any = saved.get("similarity_fn_name") or "cosine"
    if name not in ("cosine", "dot"):
        raise _unknown(folder, f"it compares vectors by {name}")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _unknown(folder: Path, what: str) -> UnknownModulesError:
    return UnknownModulesError(f"{folder} needs sentence-transformers, for {what.removesuffix('.')}.")
