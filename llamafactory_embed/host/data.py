"""Seam: the data registry. A data set keeps its whole entry of `dataset_info.json`, so that a stage finds its keys."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import contract


def apply(parser: ModuleType) -> None:
    """Let `DatasetAttr` remember the entry it was made from as `entry`."""
    attributes = contract.attribute(parser, "DatasetAttr")
    host_join = contract.attribute(attributes, "join")
    contract.check_signature(host_join, "self", "attr")
    contract.check_signature(contract.attribute(parser, "get_dataset_list"), "dataset_names", "dataset_dir")

    def join(self: Any, attr: dict[str, Any]) -> None:
        host_join(self, attr)
        self.entry = dict(attr)

    attributes.entry = None  # data sets that have no entry: `dataset_dir: ONLINE`
    attributes.join = join
