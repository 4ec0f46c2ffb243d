"""Names and values of the host, for checks of what a user has written."""

from __future__ import annotations

import typing
from collections.abc import Collection
from typing import Any

from ..hparams.option import choices
from ..stages import registry


def list_templates() -> Collection[str]:
    """The values of `template`."""
    from llamafactory.data.template import TEMPLATES

    return TEMPLATES.keys()


def list_formats(stage_name: Any) -> Collection[str]:
    """The values of `formatting` in `dataset_info.json` that a stage reads: those it declares, or the host's."""
    from llamafactory.data.parser import DatasetAttr

    stage = registry.load_registry().stages.get(stage_name) if isinstance(stage_name, str) else None
    hosts_own = choices(typing.get_type_hints(DatasetAttr)["formatting"])
    return stage.formats if stage is not None and stage.formats else hosts_own


def list_checkpoint_files() -> Collection[str]:
    """The names of files that make a folder a saved model or adapter."""
    from llamafactory.extras.constants import CHECKPOINT_NAMES

    return CHECKPOINT_NAMES


def is_switched_on(variable: str) -> bool:
    """Whether an environment variable says yes."""
    from llamafactory.extras.misc import is_env_enabled

    return is_env_enabled(variable)
