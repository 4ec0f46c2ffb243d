"""The stages of this package, as entry points register them (pyproject.toml)."""

from .host import Stage
from .hparams.contrastive import ContrastiveOptions


CONTRASTIVE = Stage(
    name="contrastive",
    options=ContrastiveOptions,
    run="llamafactory_embed.train.embed.contrastive.workflow:run_contrastive",
    label="Contrastive Embedding",
    formats=("retrieval",),
)
