"""Vectors in a column of a Parquet file: embeddings from another model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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

    def blocks_with_problems(self) -> Iterator[tuple[NDArray[np.float32], list[str | None]]]:
        """All vectors in order, and what is wrong with each, None for nothing; see `vectors_in`."""
        for _, column, offsets in self._kept_parts():
            with file_errors(self._location.text):
                block = vectors_in(column.take(pa.array(offsets)), self._width)
            yield block

    def check_column(self) -> None:
        """Raise UserError unless the column is there and holds vectors."""
        super().check_column()
        kind = self._files.type_of(self._column)
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

    @cached_property
    def _width(self) -> int:
        self.check_column()
        kind = self._files.type_of(self._column)
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
        vectors, problems = vectors_in(column, self._width)
        for offset, problem in zip(offsets.tolist(), problems, strict=True):
            if problem is not None:
                raise self._refusal(row + offset, problem)
        return vectors

    def _refusal(self, row: int, problem: str) -> UserError:
        return UserError(
            f"data.path={self.config.path}: {self.place(row)} of {self._column} {problem}; remove "
            f"or repair it"
        )


def vectors_in(column: Any, width: int) -> tuple[NDArray[np.float32], list[str | None]]:
    """The vectors of an Arrow array of lists, (n, width), and what is wrong with each.

    Those that are wrong in a way are 0.
    """
    widths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    problems: list[str | None] = [
        None
        if has == width
        else ("has no vector" if has < 0 else f"has {has} numbers") + f", others have {width}"
        for has in widths.tolist()
    ]
    flat = column.filter(pa.array(widths == width)).flatten().to_numpy(zero_copy_only=False)
    vectors = np.zeros((len(column), width), np.float32)
    # What overflows is told below.
    with np.errstate(over="ignore"):
        vectors[widths == width] = np.asarray(flat, np.float32).reshape(-1, width)
    for row in np.flatnonzero(~np.isfinite(vectors).all(1)).tolist():
        problems[row] = "has a non-finite number"
        vectors[row] = 0
    return vectors, problems
