"""Rows of a Parquet file of samples of any kind, local or in an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import (
    Int64Array,
    Source,
    check_label_column,
    choose_splits,
    listed,
)
from conr_ray.data.sources.files import locate, one_line
from conr_ray.errors import UserError

_BATCH_ROWS = 256
_SPLIT_COLUMN = "split"
_DEFAULT_LABEL_COLUMN = DataConfig.default_of("label_column")


class ParquetTable(Source):
    """The rows of one Parquet file, in file order, read a few hundred at a time.

    `data.splits` keeps the rows with these values in the column `split`. `data.label_column` holds
    integers, which are kept, or strings, which are numbered in sorted order; null and -1 mean
    unlabelled. The default column `label` may be absent.
    """

    column_field: str
    """The field of `data` that names the column of samples."""

    def __init__(self, config: DataConfig) -> None:
        """Find the file system of `data.path`; the file is not opened yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        self._location = locate(config.path)

    @property
    def _column(self) -> str:
        return str(getattr(self.config, self.column_field))

    def identity(self) -> dict[str, object]:
        """The file with its size and modification time, and what is read from it."""
        with file_errors(self._location.text):
            info = self._location.filesystem.get_file_info(self._location.path)
        splits = self.config.splits
        return {
            "source": self.config.source,
            "path": self._location.identity,
            "size": info.size,
            "mtime_ns": info.mtime_ns,
            "splits": None if splits is None else sorted(set(splits)),
            self.column_field: self._column,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
        }

    @cached_property
    def _file(self) -> Any:
        location = self._location
        try:
            return pq.ParquetFile(location.filesystem.open_input_file(location.path))
        except FileNotFoundError:
            problem = "no such file"
        except (pa.ArrowException, OSError) as error:
            problem = f"not a Parquet file ({one_line(error)})"
        raise UserError(f"data.path={location.text}: {problem}; name a Parquet file")

    @cached_property
    def _kept(self) -> NDArray[np.bool_]:
        """Which rows of the file are read."""
        if self.config.splits is None:
            return np.ones(self._file.metadata.num_rows, np.bool_)
        if _SPLIT_COLUMN not in self._columns:
            raise UserError(
                f"data.splits={listed(self.config.splits)}: {self.config.path} has no column "
                f"{_SPLIT_COLUMN}, only {listed(self._columns)}; leave data.splits out"
            )
        column = self._read_column(_SPLIT_COLUMN).cast(pa.string())
        available = sorted(pc.unique(column.drop_null()).to_pylist())
        splits = choose_splits(self.config, available)
        kept: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(splits)).to_numpy()
        return kept

    @property
    def _columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def _read_column(self, name: str) -> Any:
        """A whole column, with dictionaries decoded and strings cast to one type."""
        with file_errors(self._location.text):
            column = self._file.read(columns=[name]).column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return column.cast(pa.string() if pa.types.is_large_string(kind) else kind)

    def _num_kept(self) -> int:
        """Number of rows that are read.

        Raises UserError if there are none.
        """
        count = int(self._kept.sum())
        if not count:
            raise UserError(f"data.path={self.config.path}: no rows; name a file with rows")
        return count

    def _check_column(self) -> None:
        if self._column not in self._columns:
            raise UserError(
                f"data.{self.column_field}={self._column}: {self.config.path} has no such column; "
                f"choose from {listed(self._columns)}"
            )

    def _kept_parts(self) -> Iterator[tuple[int, Any, NDArray[np.int64]]]:
        """The column of samples part by part: first row, Arrow array, offsets of kept rows."""
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if self._kept[start:end].any():
                with file_errors(self._location.text):
                    batches = self._file.iter_batches(
                        _BATCH_ROWS, row_groups=[group], columns=[self._column]
                    )
                row = start
                while (batch := self._next_batch(batches)) is not None:
                    yield row, batch.column(0), np.flatnonzero(self._kept[row : row + len(batch)])
                    row += len(batch)
            start = end

    def _next_batch(self, batches: Iterator[Any]) -> Any:
        with file_errors(self._location.text):
            return next(batches, None)

    def _labels(self) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        name = self.config.label_column
        if name is None or (name == _DEFAULT_LABEL_COLUMN and name not in self._columns):
            return None, None
        check_label_column(self.config, self._columns)
        column = self._read_column(name).filter(pa.array(self._kept))
        class_names: tuple[str, ...] | None = None
        if pa.types.is_string(column.type):
            class_names = tuple(sorted(pc.unique(column.drop_null()).to_pylist()))
            column = pc.index_in(column, value_set=pa.array(class_names, pa.string()))
        elif not pa.types.is_integer(column.type):
            raise UserError(
                f"data.label_column={name}: holds {column.type}; name a column of integers or "
                f"strings, or null to ignore labels"
            )
        labels: Int64Array = column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
        if labels.min() < -1:
            raise UserError(
                f"data.label_column={name}: holds {labels.min()}; write -1 for an unlabelled image"
            )
        if class_names is None:
            class_names = _names_in_schema(self._file.schema_arrow.metadata or {}, name)
            if class_names is not None and labels.max() >= len(class_names):
                class_names = None
        return labels, class_names


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn Arrow's errors on damaged or unreachable data into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.path={path}: cannot be read ({one_line(error)}); repair or replace it"
        ) from None


def _names_in_schema(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Class names of an integer column: Hugging Face's ClassLabel, or a JSON list.

    The list is under `classes` for a column `label`, `coarse_classes` for `coarse_label`.
    """
    try:
        plain = json.loads(metadata.get(column.replace("label", "classes").encode(), b"null"))
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        plain = features[column]["names"] if plain is None else plain
    except (ValueError, KeyError, TypeError):
        pass
    return tuple(str(name) for name in plain) if isinstance(plain, list) else None
