"""A Parquet file of the input's rows, with a vector beside each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import pyarrow


VECTOR_COLUMN = "vector"

Row = Mapping[str, Any]
ArrowTypes = dict[str, "pyarrow.DataType | None"]  # of columns; None: values are kept as JSON


class ColumnTypes:
    """Which columns a table of these rows needs, and of which types: known when every row has been looked at.

    A column whose values are of no common type, or of one that Parquet does not have, becomes one of JSON texts.
    """

    def __init__(self) -> None:
        self._types: dict[str, pyarrow.DataType | None] = {}  # None: JSON
        self._large: set[str] = set()  # columns of numbers that a float would round

    def add(self, rows: Sequence[Row]) -> None:
        """Look at rows."""
        for name in dict.fromkeys(name for row in rows for name in row):
            found = self._type_of(name, [row.get(name) for row in rows])
            self._types[name] = self._common(name, self._types.get(name, found), found)

    def finish(self) -> ArrowTypes:
        """The types, in the order of the input's columns."""
        import pyarrow

        empty = {name for name, kind in self._types.items() if kind is not None and pyarrow.types.is_null(kind)}
        return {name: pyarrow.string() if name in empty else kind for name, kind in self._types.items()}

    def _type_of(self, name: str, values: list[Any]) -> pyarrow.DataType | None:
        import pyarrow

        try:
            array = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
            return None
        if pyarrow.types.is_integer(array.type):
            try:
                array.cast(pyarrow.float64())
            except pyarrow.ArrowInvalid:
                self._large.add(name)
        return array.type if is_writable(array.type) else None

    def _common(
        self, name: str, one: pyarrow.DataType | None, other: pyarrow.DataType | None
    ) -> pyarrow.DataType | None:
        import pyarrow

        if one is None or other is None:
            return None
        try:
            both = [pyarrow.schema([(name, kind)]) for kind in (one, other)]
            (field,) = pyarrow.unify_schemas(both, promote_options="permissive")
        except pyarrow.ArrowException:
            return None
        return None if name in self._large and pyarrow.types.is_floating(field.type) else field.type


def is_writable(kind: pyarrow.DataType) -> bool:
    """Whether Parquet has this type: it knows no object without a key."""
    import pyarrow

    children = [kind.field(index).type for index in range(kind.num_fields)]
    return kind != pyarrow.struct([]) and all(map(is_writable, children))


def write_table(
    path: Path,
    portions: Iterable[tuple[Sequence[Row], np.ndarray]],
    types: ArrowTypes,
    dtype: np.dtype,
    columns: int,
) -> None:
    """A Parquet file of rows and vectors [n, columns], a row group for each portion."""
    import pyarrow
    import pyarrow.parquet

    vector = pyarrow.list_(pyarrow.from_numpy_dtype(dtype), columns)
    kinds = {name: pyarrow.string() if kind is None else kind for name, kind in types.items()}
    schema = pyarrow.schema([*kinds.items(), (VECTOR_COLUMN, vector)])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for rows, vectors in portions:
            arrays = [
                pyarrow.array([as_json(row, name) if types[name] is None else row.get(name) for row in rows], kind)
                for name, kind in kinds.items()
            ]
            flat = pyarrow.array(vectors.reshape(-1), vector.value_type)
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, columns))
            writer.write_table(pyarrow.table(arrays, schema=schema), row_group_size=max(1, len(rows)))


def as_json(row: Row, column: str) -> str | None:
    """A value as JSON; half characters, which no UTF-8 text holds, are written as their escapes."""
    return json.dumps(row[column], default=str) if column in row else None
