"""Adapters of LLM2Vec on causal language models, and the other way round.

LLM2Vec (BehnamGhader et al. 2024) wraps the decoder below the language-model head, so its adapters name
`layers.0.self_attn.q_proj`; LLaMA-Factory wraps the whole model, whose module is `model.layers.0.self_attn.q_proj`.
PEFT ignores weights whose names it does not find: without a change of names, an adapter of the other kind would be
loaded as one that does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..foreign import read_json_object
from ..model.tensor_files import read_shapes, read_tensors


AdapterLayout = Literal["causal_lm", "decoder"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
LLM2VEC_SETTINGS = "llm2vec_config.json"
ALWAYS_WRITTEN = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
MISSING = object()

PEFT_PREFIX = "base_model.model."
LONGEST_PARAMETER_NAME = 2  # as in `lora_A.weight` or `lora_magnitude_vector`
WHOLE_PARAMETERS = ("weight", "bias")  # of modules that an adapter replaces as a whole


@dataclass(frozen=True)
class ModuleNames:
    """The modules of a causal language model, and under which name it holds its decoder."""

    causal_lm: frozenset[str]
    decoder_name: str

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> ModuleNames:
        """Those of a model without adapters."""
        return cls(frozenset(name for name, _ in model.named_modules() if name), model.base_model_prefix)

    @classmethod
    def of_config(cls, config: PretrainedConfig, trust_remote_code: bool = False) -> ModuleNames:
        """Those of a model that is yet to be loaded."""
        with torch.device("meta"):
            return cls.of_model(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))

    def in_layout(self, layout: AdapterLayout) -> frozenset[str]:
        """The modules as an adapter of that layout names them."""
        if layout == "causal_lm":
            return self.causal_lm
        prefix = f"{self.decoder_name}."
        return frozenset(name.removeprefix(prefix) for name in self.causal_lm if name.startswith(prefix))

    def rename(self, name: str, layout: AdapterLayout) -> str:
        """A name of the other layout in this one."""
        prefix = f"{self.decoder_name}."
        if layout == "causal_lm":
            return prefix + name
        if not name.startswith(prefix):
            raise ValueError(
                f"The adapter changes `{name}`, which lies outside the decoder: an adapter of LLM2Vec cannot hold it."
            )
        return name.removeprefix(prefix)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk, downloaded if it was named by its place on the hub."""

    name: str
    config: Path
    weights: Path

    @classmethod
    def find(cls, name: str | Path, **hub: Any) -> AdapterFiles:
        """`hub` is what `cached_file` takes: subfolder, revision, token, cache_dir."""

        def find_file(file_name: str) -> str | None:
            found: str | None = cached_file(str(name), file_name, _raise_exceptions_for_missing_entries=False, **hub)
            return found

        try:
            config = find_file(CONFIG_FILE)
            weights = find_file(WEIGHTS_FILE) or find_file(OLD_WEIGHTS_FILE)
        except OSError as error:
            raise ValueError(f"`adapter_name_or_path`: `{name}` cannot be loaded: {error}") from error
        if config is None or weights is None:
            missing = CONFIG_FILE if config is None else WEIGHTS_FILE
            where = "" if Path(name).is_dir() else " (it is no folder, and the hub does not give it)"
            raise ValueError(f"`adapter_name_or_path`: `{name}` holds no {missing}{where}: name an adapter of PEFT.")
        return cls(str(name), Path(config), Path(weights))

    def read_config(self) -> dict[str, Any]:
        return read_json_object(self.config)

    def parameter_names(self) -> list[str]:
        """Without reading the weights, where the file allows it."""
        return list(read_shapes(self.weights))

    def parameter_shapes(self) -> dict[str, list[int]]:
        """Without reading the weights, where the file allows it."""
        return {name: list(shape) for name, (shape, _) in read_shapes(self.weights).items()}

    def read_weights(self) -> dict[str, torch.Tensor]:
        return dict(read_tensors(self.weights))

    def fingerprint(self) -> str:
        """A few digits that change with the adapter."""
        digest = hashlib.sha256(self.config.read_bytes())
        with self.weights.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        return digest.hexdigest()[:12]


def find_adapter_layout(parameter_names: Iterable[str], modules: ModuleNames, adapter: str) -> AdapterLayout:
    """The layout whose names an adapter uses for its modules; other names belong to another architecture."""
    names = list(parameter_names)
    layouts: tuple[AdapterLayout, ...] = ("causal_lm", "decoder")
    for layout in layouts:
        known = modules.in_layout(layout)
        if names and all(find_module(name, known) is not None for name in names):
            return layout

    known = frozenset[str]().union(*(modules.in_layout(layout) for layout in layouts))
    foreign = next((name for name in names if find_module(name, known) is None), "modules of two layouts")
    raise ValueError(
        f"`adapter_name_or_path`: `{adapter}` changes `{foreign.removeprefix(PEFT_PREFIX) if names else 'nothing'}`, "
        "which is not how an adapter names the modules of `model_name_or_path`: it was made for another architecture."
    )


def find_module(parameter_name: str, modules: frozenset[str]) -> str | None:
    """The module that a parameter of an adapter belongs to."""
    parts = parameter_name.removeprefix(PEFT_PREFIX).split(".")
    for cut in range(1, min(LONGEST_PARAMETER_NAME, len(parts) - 1) + 1):
        module = ".".join(parts[:-cut])
        if module in modules:
            return module
    return None


def convert_adapter(
    adapter: AdapterFiles, destination: str | Path, layout: AdapterLayout, modules: ModuleNames
) -> None:
    """Write the adapter in that layout into the folder `destination`, which must not exist; an adapter that has the
    layout already keeps its names."""
    weights = adapter.read_weights()
    config = adapter.read_config()
    found = find_adapter_layout(weights, modules, adapter.name)
    if found != layout:
        owners = {name: str(find_module(name, modules.in_layout(found))) for name in weights}
        adapted = {
            modules.rename(owner, layout)
            for name, owner in owners.items()
            if name.removeprefix(f"{PEFT_PREFIX}{owner}.") not in WHOLE_PARAMETERS
        }
        weights = {
            PEFT_PREFIX + modules.rename(name.removeprefix(PEFT_PREFIX), layout): each
            for name, each in weights.items()
        }
        config = _convert_config(config, adapted, layout, modules)
    if layout == "decoder":
        config = leave_out_defaults(config)

    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".converting-"))
    try:
        save_file({name: each.contiguous() for name, each in weights.items()}, temporary / WEIGHTS_FILE)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp's folders are for their owner's eyes only
        os.rename(temporary, destination)
    except OSError:
        if not _is_adapter(destination):  # otherwise another process was faster, with the same result
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_config(
    config: Mapping[str, Any], adapted: Iterable[str], layout: AdapterLayout, modules: ModuleNames
) -> dict[str, Any]:
    """`adapted` are the modules with an adapter, under their new names."""
    converted = dict(config)
    # The class that PEFT wraps the model in; that of causal language models calls for a head.
    converted["task_type"] = "CAUSAL_LM" if layout == "causal_lm" else None
    converted["auto_mapping"] = None  # names the class of the model, which is LLM2Vec's own
    if isinstance(config.get("target_modules"), str) and config["target_modules"] != "all-linear":
        converted["target_modules"] = sorted(adapted)  # a pattern for whole names

    # Names in lists and keys of patterns are endings of names, so that a missing prefix does no harm.
    prefix = f"{modules.decoder_name}."
    if layout == "decoder":
        for key in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
            if isinstance(converted.get(key), list):
                converted[key] = sorted({name.removeprefix(prefix) for name in converted[key]})
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: dict[str, Any] = config.get(key) or {}
        if layout == "decoder":
            shortened = re.compile(rf"^(\^?){re.escape(modules.decoder_name)}\\?\.")
            converted[key] = {shortened.sub(r"\1", name): value for name, value in patterns.items()}
        else:
            converted[key] = {re.sub(r"^\^", f"^{prefix}", name): value for name, value in patterns.items()}
    return converted


def leave_out_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without keys at their default: LLM2Vec keeps its users on transformers 4.44, and a PEFT of
    that time refuses a key that it does not know, whatever its value."""
    defaults = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(config["peft_type"])]().to_dict()
    return {
        key: value for key, value in config.items() if key in ALWAYS_WRITTEN or value != defaults.get(key, MISSING)
    }


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def adapter_for_causal_lm(name: str | Path, modules: ModuleNames, cache: str | Path, **hub: Any) -> str:
    """The adapter as it is if it names the modules of the causal language model, otherwise the folder below `cache`
    that holds it with these names.

    The folder's name follows from the adapter's content, so a second run finds it; several processes may ask at once.
    """
    adapter = AdapterFiles.find(name, **hub)
    if find_adapter_layout(adapter.parameter_names(), modules, adapter.name) == "causal_lm":
        return str(name)
    short_name = re.sub(r"[^\w.-]+", "_", Path(str(name)).name) or "adapter"
    folder = Path(cache).absolute() / f"{short_name}-{adapter.fingerprint()}"
    destination = folder / (hub.get("subfolder") or "")  # where the host, too, will look for it
    if not _is_adapter(destination):
        convert_adapter(adapter, destination, "causal_lm", modules)
    return str(folder)


def save_as_llm2vec(
    name: str | Path,
    target: str | Path,
    modules: ModuleNames,
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write an adapter, such as one of masked next-token prediction, as a folder that LLM2Vec loads on the base model:
    `LLM2Vec.from_pretrained(base, peft_model_name_or_path=target)`. `target` must not exist. `settings` are those of
    llm2vec_config.json (`pooling_mode`, `max_length`, …)."""
    target = Path(target)
    if target.exists():
        raise ValueError(f"{target} already exists: name a new folder.")
    adapter = AdapterFiles.find(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as unfinished:
        folder = Path(unfinished, target.name)
        convert_adapter(adapter, folder, "decoder", modules)
        tokenizer.save_pretrained(folder)
        written = json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n"
        (folder / LLM2VEC_SETTINGS).write_text(written, encoding="utf-8")
        os.rename(folder, target)
