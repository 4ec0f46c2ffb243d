"""Rows that name their texts by id: the ids are replaced by the texts of a corpus or of a file of queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..problems import BadRowError, BadRows
from ..registry import HubOptions
from .columns import Record, is_instructed
from .entries import Entry
from .formats import ID_ROLE_OF, ID_ROLES
from .texts import read_source


@dataclass(frozen=True)
class References:
    """The texts that the rows of a data set name by id."""

    texts: Mapping[str, Mapping[str, str]]
    """For each of the roles `query`, `positive` and `negative` that ids stand for: the texts by their ids."""
    sources: Mapping[str, str]
    """For each of these roles: where its texts lie."""
    columns: Mapping[str, str]
    """The columns that the entry names, by role."""

    @classmethod
    def read(cls, entry: Entry, bad_rows: BadRows, hub: HubOptions) -> References:
        """Read the corpus and the queries of an entry, as far as it names them."""
        texts: dict[str, Mapping[str, str]] = {}
        sources: dict[str, str] = {}
        for source, roles in ((entry.queries, ["query"]), (entry.corpus, ["positive", "negative"])):
            if source is not None:
                texts |= dict.fromkeys(roles, read_source(source, bad_rows, hub))
                sources |= dict.fromkeys(roles, source.location)
        return cls(texts, sources, entry.columns)

    def resolve(self, record: Record) -> Record:
        """The record with texts under `query`, `positive` and `negative` in place of its columns of ids."""
        if not self.texts:
            return record
        resolved = dict(record)
        for role in self.texts:
            column = self._column_of_ids(role, record)
            if column is not None:
                resolved[role] = self._replace(resolved.pop(column), role, column)
        return resolved

    def _column_of_ids(self, role: str, record: Record) -> str | None:
        named = self.columns.get(ID_ROLE_OF[role])
        names = ID_ROLES[ID_ROLE_OF[role]] if named is None else (named,)
        column = next((name for name in names if name in record), None)
        if column is None and named is not None and role != "negative":
            raise BadRowError(f"there is no column `{named}`, which `columns` names as `{ID_ROLE_OF[role]}`")
        return column

    def _replace(self, value: object, role: str, column: str) -> Any:
        """The text of an id, or the texts of a list of ids and of pairs of instruction and id."""
        if isinstance(value, (list, tuple)) and role != "query":
            return [
                [item[0], self._text(item[1], role, column)] if is_instructed(item) else self._text(item, role, column)
                for item in value
            ]
        if value is None and role == "negative":
            return None
        return self._text(value, role, column)

    def _text(self, key: Any, role: str, column: str) -> str:
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise BadRowError(f"`{column}` must hold ids, not {key!r}")
        text = self.texts[role].get(str(key))
        if text is None:
            raise BadRowError(f"`{column}` names `{key}`, which is not in {self.sources[role]}")
        return text
