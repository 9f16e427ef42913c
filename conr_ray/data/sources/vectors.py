"""Vectors in a column of a Parquet file: embeddings from another model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conr_ray.data.sources.base import Contents
from conr_ray.data.sources.parquet_table import ParquetTable, file_errors
from conr_ray.errors import UserError
from conr_ray.fields import short


class VectorsSource(ParquetTable):
    """The lists of floats in `data.vector_column`, all of one length.

    The type of fixed-size lists gives the length; for other lists the first row does.
    """

    column_field = "vector_column"

    def contents(self) -> Contents:
        """Number of rows, width, and labels; only the first vector is read."""
        num_rows = self._num_kept()
        return Contents(num_rows, (self._width,), *self._labels())

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All vectors in order, float32 (b, d).

        Raises UserError, naming the first row whose vector is missing, not finite or of another
        length.
        """
        for row, column, offsets in self._kept_parts():
            with file_errors(self._location.text):
                block = self._block(row, column.take(pa.array(offsets)), offsets)
            yield block

    @cached_property
    def _width(self) -> int:
        self._check_column()
        kind = self._schema.field(self._column).type
        is_list = (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise UserError(
                f"data.vector_column={self._column}: holds {short(str(kind))}; name a column of "
                f"lists of floats"
            )
        if pa.types.is_fixed_size_list(kind):
            width = int(kind.list_size)
        else:
            row, column, offsets = next(self._kept_parts())
            first = column[int(offsets[0])].as_py()
            if first is None:
                raise self._refusal(row + int(offsets[0]), "has no vector")
            width = len(first)
        if not width:
            raise UserError(
                f"data.vector_column={self._column}: its vectors are empty; name another"
            )
        return width

    def _block(self, row: int, column: Any, offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        widths = np.array([-1 if value is None else len(value) for value in column.to_pylist()])
        for offset, width in zip(offsets.tolist(), widths.tolist(), strict=True):
            if width != self._width:
                has = "has no vector" if width < 0 else f"has {width} numbers"
                raise self._refusal(row + offset, f"{has}, others have {self._width}")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        # What overflows is refused below.
        with np.errstate(over="ignore"):
            vectors = np.asarray(flat, np.float32).reshape(len(column), self._width)
        broken = np.flatnonzero(~np.isfinite(vectors).all(1))
        if len(broken):
            raise self._refusal(row + int(offsets[broken[0]]), "has a non-finite number")
        return vectors

    def _refusal(self, row: int, problem: str) -> UserError:
        return UserError(
            f"data.path={self.config.path}: row {row} of {self._column} {problem}; remove or "
            f"repair it"
        )
