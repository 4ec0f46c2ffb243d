"""What is judged: checkpoints of ours at each of their sizes, other models, and reference lines."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..encoder.encoder import Encoder
from ..hparams.suggestion import suggest
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from .options import EvaluationOptions
from .prompts import Instructions, resolve_prompts
from .search import EXACT


SENTENCE_TRANSFORMERS = "modules.json"
BLOCK = 1 << 22  # bytes
# What decides the embeddings of a checkpoint; logs, optimizer states and cards do not.
CONFIGS = (CONFIG_NAME, "config.json", "adapter_config.json", SENTENCE_TRANSFORMERS, "*_Pooling/config.json")
TELLING_FILES = (*CONFIGS, "*.safetensors", "tokenizer*", "vocab*", "merges.txt")

LEXICAL = ("bm25", "tfidf")
MINILM = "minilm"


@dataclass(frozen=True)
class Judged:
    """A column of the table. The model is opened when a result of it is not there yet."""

    name: str
    """`organization/model`, as mteb files it."""
    revision: str
    open: Callable[[], Any]
    experiment: dict[str, Any] = field(default_factory=dict)
    """What makes its results others than those of the same model as it is."""
    label: str = ""
    searches_only: bool = False
    """Whether it can be judged by retrieval alone."""


def list_models(options: EvaluationOptions, local_tasks: Iterable[str]) -> list[Judged]:
    """Everything that the options want to see judged. What can be checked without loading a model is checked."""
    local = frozenset(local_tasks)
    names: Sequence[str | None] = options.names or [None] * len(options.checkpoints)
    judged: list[Judged] = []
    for folder, name in zip(options.checkpoints, names, strict=True):
        judged += models_of_folder(folder, name, options, local)
    for baseline in options.baseline or ():
        judged += models_of_baseline(baseline, options, local)
    labels = [each.label for each in judged]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"Two models would both be called {label}: give them `names`.")
    return judged


def models_of_folder(
    folder: str, name: str | None, options: EvaluationOptions, local_tasks: frozenset[str]
) -> list[Judged]:
    """A checkpoint of ours, at each size; or a sentence-transformers model."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"There is no folder {folder} to evaluate.")
    if not (path / CONFIG_NAME).is_file() and (path / SENTENCE_TRANSFORMERS).is_file():
        return [sentence_transformer(path, name or name_of_folder(path), options)]
    config = EmbeddingConfig.load(path)
    prompts = resolve_prompts(options.prompts or {}, config, folder)
    title, revision = name or name_of_folder(path), revision_of(path)
    shared: dict[str, Encoder] = {}  # the sizes of one checkpoint share what is loaded, and what is embedded

    def opener(size: int | None) -> Callable[[], Any]:
        def open_model() -> Any:
            if not shared:
                shared["encoder"] = load_encoder(path, options)
            return wrap_encoder(shared["encoder"], title, revision, size, prompts, options, local_tasks)

        return open_model

    judged = []
    sizes: Sequence[int | None] = options.dimensions or [None]
    for size in sizes:
        check_dimension(size, config, path)
        experiment = experiment_of(options, size, prompts)
        label = title if size is None else f"{title} ({size})"
        judged.append(Judged(title, revision, opener(size), experiment, label))
    return judged


def models_of_baseline(name: str, options: EvaluationOptions, local_tasks: frozenset[str]) -> list[Judged]:
    """A reference line."""
    if name in LEXICAL:

        def open_model() -> Any:
            from .lexical import LexicalSearch

            return LexicalSearch(name)

        return [Judged(f"baseline/{name}", "1", open_model, label=name, searches_only=True)]
    if name == MINILM:
        from .minilm import LABEL, fetch_minilm

        return [sentence_transformer(fetch_minilm(), LABEL, options)]
    if not os.path.isdir(name):
        known = (*LEXICAL, MINILM)
        raise ValueError(f"`baseline: {name}` is neither {', '.join(known)} nor a folder{suggest(name, known)}")
    return models_of_folder(name, None, options, local_tasks)


def sentence_transformer(path: Path, name: str, options: EvaluationOptions) -> Judged:
    """A sentence-transformers model in mteb's own wrapper, with the prompts that it brings."""
    revision = revision_of(path)

    def open_model() -> Any:
        from mteb.models import SentenceTransformerEncoderWrapper
        from sentence_transformers import SentenceTransformer

        device = options.devices[0] if options.devices else None
        model = SentenceTransformerEncoderWrapper(SentenceTransformer(str(path), device=device))
        model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"name": name, "revision": revision})
        return model

    return Judged(name, revision, open_model, label=name)


def load_encoder(path: Path, options: EvaluationOptions) -> Encoder:
    """The Encoder of a checkpoint: on the one device that is named, or, where several share the work, out of their
    way."""
    devices = options.devices or []
    return Encoder(path, device=devices[0] if len(devices) == 1 else "cpu" if devices else None)


def wrap_encoder(
    encoder: Encoder,
    name: str,
    revision: str,
    size: int | None,
    prompts: dict[str, str],
    options: EvaluationOptions,
    local_tasks: frozenset[str],
) -> Any:
    """An Encoder as mteb's model."""
    from .mteb_encoder import MtebEncoder

    instructions = Instructions(prompts, encoder.config.instructions, options.default_prompts, local_tasks)
    vectors = Path(options.vectors or Path(options.output, "vectors"), name.replace("/", "__"), revision)
    return MtebEncoder(
        encoder,
        describe(encoder, name, revision, experiment_of(options, size, prompts)),
        instructions,
        vectors,
        dimension=size,
        split_long_documents=options.long_documents == "chunk",
        index=options.index,
        devices=options.devices,
    )


def experiment_of(options: EvaluationOptions, size: int | None, prompts: dict[str, str]) -> dict[str, Any]:
    """What mteb has to keep apart of the same model's other results."""
    experiment: dict[str, Any] = {}
    if size is not None:
        experiment["dimensions"] = size
    if options.long_documents != "truncate":
        experiment["long_documents"] = options.long_documents
    if options.index != EXACT:
        experiment["index"] = options.index
    if prompts or not options.default_prompts:
        said = json.dumps([sorted(prompts.items()), options.default_prompts])
        experiment["prompts"] = hashlib.blake2b(said.encode(), digest_size=4).hexdigest()
    return experiment


def describe(encoder: Encoder, name: str, revision: str, experiment: dict[str, Any]) -> Any:
    """What the leaderboard wants to know of a model."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    config = encoder.config
    parameters = list(encoder.model.parameters())
    sizes = sorted({*(config.matryoshka_dims or []), encoder.dimension})
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=sum(each.numel() for each in parameters),
        n_embedding_parameters=encoder.model.decoder.get_input_embeddings().weight.numel(),
        memory_usage_mb=sum(each.numel() * each.element_size() for each in parameters) / 2**20,
        max_tokens=config.document_max_length,
        embed_dim=sizes if len(sizes) > 1 else encoder.dimension,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        similarity_fn_name=ScoringFunction(config.similarity),
        use_instructions=any(config.instructions.values()),
        training_datasets=set(config.instructions) or None,
        adapted_from=config.base_model,
        experiment_kwargs=experiment or None,
    )


def check_dimension(size: int | None, config: EmbeddingConfig, path: Path) -> None:
    """Refuse a size that was not trained, as early as the model's own size is known."""
    trained = config.matryoshka_dims or []
    if size is None or size in trained or not (path / "config.json").is_file():
        return  # the Encoder will look again
    full = json.loads((path / "config.json").read_text("utf-8")).get("hidden_size")
    if full is not None and size != full:
        known = ", ".join(map(str, sorted({*trained, full})))
        raise ValueError(f"`dimensions: {size}` was not trained; {path} has {known}.")


def name_of_folder(path: Path) -> str:
    """`organization/model` from the last two parts of a path, which also tell a run's checkpoints apart."""
    path = path.resolve()
    return f"{path.parent.name or 'local'}/{path.name}"


def revision_of(path: Path) -> str:
    """A digest of what decides the embeddings: the checkpoint, and the local folders it is built on."""
    digest = hashlib.blake2b(digest_size=10)
    for folder in [path, *folders_below(path)]:
        for file in sorted({file for pattern in TELLING_FILES for file in folder.glob(pattern) if file.is_file()}):
            digest.update(file.name.encode())
            with open(file, "rb") as content:
                while block := content.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def folders_below(path: Path) -> list[Path]:
    """The base model of an adapter and the adapters merged into it, as far as they are folders."""
    if not (path / CONFIG_NAME).is_file() or not (path / "adapter_config.json").is_file():
        return []
    config = EmbeddingConfig.load(path)
    return [Path(each) for each in [config.base_model, *config.merged_adapters] if each and os.path.isdir(each)]


def release(model: Any) -> None:
    """Free what a model holds before the next is loaded."""
    from .mteb_encoder import MtebEncoder

    if isinstance(model, MtebEncoder):
        model.close()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
