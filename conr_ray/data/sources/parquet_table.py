"""Rows of a Parquet file of samples of any kind, local or in an object store."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
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
from conr_ray.data.sources.files import locate
from conr_ray.errors import UserError, one_line
from conr_ray.fields import short

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
            opened = location.filesystem.open_input_file(location.path)
            return pq.ParquetFile(opened, page_checksum_verification=True)
        except FileNotFoundError:
            problem = "no such file"
        # Of a damaged file Arrow raises errors of many kinds.
        except Exception as error:
            problem = f"not a Parquet file ({one_line(error)})"
        raise UserError(f"data.path={location.text}: {problem}; name a Parquet file")

    @cached_property
    def _schema(self) -> Any:
        with file_errors(self._location.text):
            return self._file.schema_arrow

    @cached_property
    def _num_rows(self) -> int:
        with file_errors(self._location.text):
            return int(self._file.metadata.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the file, as its end tells."""
        return self._num_rows

    @cached_property
    def _kept(self) -> NDArray[np.bool_] | None:
        """Which rows of the file are read; None for all."""
        if self.config.splits is None:
            return None
        if _SPLIT_COLUMN not in self._columns:
            raise UserError(
                f"data.splits={listed(self.config.splits)}: {self.config.path} has no column "
                f"{_SPLIT_COLUMN}, only {listed(self._columns)}; leave data.splits out"
            )
        self._check_once("splits", _SPLIT_COLUMN)
        column = self._read_column(_SPLIT_COLUMN)
        with file_errors(self._location.text):
            column = column.cast(pa.string())
            available = sorted(pc.unique(column.drop_null()).to_pylist())
        splits = choose_splits(self.config, available)
        kept: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(splits)).to_numpy()
        return kept

    @property
    def _columns(self) -> list[str]:
        return list(self._schema.names)

    def _check_once(self, field: str, column: str) -> None:
        """Raise UserError if several columns, as of a join, have the name of one that is read."""
        if (count := self._columns.count(column)) > 1:
            raise UserError(
                f"data.{field}={self._shown(field)}: {self.config.path} has {count} columns "
                f"{column}; rename all but one"
            )

    def _shown(self, field: str) -> str:
        value = getattr(self.config, field)
        return listed(value) if isinstance(value, tuple) else str(value)

    def _read_column(self, name: str) -> Any:
        """A whole column, with dictionaries decoded and strings cast to one type."""
        with file_errors(self._location.text):
            column = self._file.read(columns=[name]).column(name)
            if len(column) != self._num_rows:
                raise ValueError(f"{len(column):,} rows of {name}, not {self._num_rows:,}")
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            return column.cast(pa.string() if pa.types.is_large_string(kind) else kind)

    def _num_kept(self) -> int:
        """Number of rows that are read.

        Raises UserError if there are none.
        """
        count = self._num_rows if self._kept is None else int(self._kept.sum())
        if count < 1:
            raise UserError(f"data.path={self.config.path}: no rows; name a file with rows")
        return count

    def check_column(self) -> None:
        """Raise UserError unless the column of samples is there, once."""
        if self._column not in self._columns:
            raise UserError(
                f"data.{self.column_field}={self._column}: {self.config.path} has no such column; "
                f"choose from {listed(self._columns)}"
            )
        self._check_once(self.column_field, self._column)

    def columns(self, names: Collection[str]) -> Any:
        """Those of some whole columns that are there, once, as an Arrow table."""
        found = [name for name in self._columns if name in names and self._columns.count(name) == 1]
        with file_errors(self._location.text):
            return self._file.read(columns=found)

    def _kept_parts(self) -> Iterator[tuple[int, Any, NDArray[np.int64]]]:
        """The column of samples part by part: first row, Arrow array, offsets of kept rows.

        Raises UserError if the parts do not have the rows that the file's end tells of.
        """
        start, kept = 0, self._kept
        with file_errors(self._location.text):
            for group in range(self._file.num_row_groups):
                end = start + self._file.metadata.row_group(group).num_rows
                if kept is None or kept[start:end].any():
                    row = start
                    for part in self.parts(group):
                        mask = np.ones(len(part), np.bool_) if kept is None else kept[row:end]
                        yield row, part, np.flatnonzero(mask[: len(part)])
                        row += len(part)
                    if row != end:
                        raise ValueError(f"{row - start:,} rows, not {end - start:,}")
                start = end
            if start != self._num_rows:
                raise ValueError(f"{start:,} rows, not {self._num_rows:,}")

    def group_sizes(self) -> list[int]:
        """Number of rows in each row group."""
        with file_errors(self._location.text):
            end = self._file.metadata
            return [end.row_group(group).num_rows for group in range(end.num_row_groups)]

    def parts(self, group: int) -> Iterator[Any]:
        """The column of samples in a row group, a few hundred rows at a time."""
        for batch in self._file.iter_batches(
            _BATCH_ROWS, row_groups=[group], columns=[self._column]
        ):
            yield batch.column(self._column)

    def _labels(self) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        name = self.config.label_column
        if name is None or (name == _DEFAULT_LABEL_COLUMN and name not in self._columns):
            return None, None
        check_label_column(self.config, self._columns)
        self._check_once("label_column", name)
        column = self._read_column(name)
        with file_errors(self._location.text):
            if self._kept is not None:
                column = column.filter(pa.array(self._kept))
            if pa.types.is_string(column.type):
                class_names = tuple(sorted(pc.unique(column.drop_null()).to_pylist()))
                column = pc.index_in(column, value_set=pa.array(class_names, pa.string()))
                return _as_labels(column), class_names
        if not pa.types.is_integer(column.type):
            raise UserError(
                f"data.label_column={name}: holds {short(str(column.type))}; name a column of "
                f"integers or strings, or null to ignore labels"
            )
        if (highest := pc.max(column).as_py() or 0) >= 2**63:
            raise UserError(
                f"data.label_column={name}: holds {highest}, which has no place in a signed 64-bit "
                f"integer; number the classes, or store them as strings"
            )
        labels = _as_labels(column)
        if labels.min() < -1:
            raise UserError(
                f"data.label_column={name}: holds {labels.min()}; write -1 for an unlabelled image"
            )
        names = _names_in_schema(self._schema.metadata or {}, name)
        return labels, names if names is not None and labels.max() < len(names) else None


def _as_labels(column: Any) -> Int64Array:
    labels: Int64Array = column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
    return labels


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn whatever reading damaged or unreachable data raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    # Arrow raises errors of many kinds, and Python's own for text that is no UTF-8.
    except Exception as error:
        raise UserError(
            f"data.path={path}: cannot be read ({one_line(error)}); repair or replace it"
        ) from None


def _names_in_schema(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Class names of an integer column: Hugging Face's ClassLabel, or a JSON list.

    The list is under `classes` for a column `label`, `coarse_classes` for `coarse_label`.
    """
    names = _parsed(metadata.get(column.replace("label", "classes").encode()))
    if names is None:
        try:
            names = _parsed(metadata.get(b"huggingface"))["info"]["features"][column]["names"]
        except (KeyError, TypeError):
            return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _parsed(text: bytes | None) -> Any:
    """The value of a JSON text; None for what is none."""
    try:
        return json.loads(text or b"null")
    except (ValueError, RecursionError):
        return None
