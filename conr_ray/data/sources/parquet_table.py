"""Rows of Parquet files of samples of any kind, local or in an object store."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.inventory import Inventory
from conr_ray.data.sources.base import (
    Int64Array,
    Source,
    check_label_column,
    choose_splits,
    listed,
)
from conr_ray.data.sources.files import locate
from conr_ray.data.sources.label_column import labels_in
from conr_ray.data.sources.parquet_files import SPLIT, ParquetFiles
from conr_ray.data.sources.walk import WHY
from conr_ray.errors import UserError, one_line

_BATCH_ROWS = 256
_DEFAULT_LABEL_COLUMN = DataConfig.default_of("label_column")


class ParquetTable(Source):
    """The rows of Parquet files, in the order of their paths, read a few hundred at a time.

    `data.splits` keeps the rows with these values in the column `split`; see `ParquetFiles` for
    where else splits may be told. For `data.label_column` see `labels_in`. The default column
    `label` may be absent.
    """

    column_field: str
    """The field of `data` that names the column of samples."""

    def __init__(self, config: DataConfig) -> None:
        """Find the file system of `data.path`; no file is opened yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        self._location = locate(config.path)
        self._files = ParquetFiles(config.path)

    @property
    def _column(self) -> str:
        return str(getattr(self.config, self.column_field))

    def identity(self) -> dict[str, object]:
        """The files with their sizes and modification times, and what is read from them."""
        splits = self.config.splits
        return {
            "source": self.config.source,
            "path": self._location.identity,
            "files": [(file.name, file.size, file.mtime_ns) for file in self._files.files],
            "splits": None if splits is None else sorted(set(splits)),
            self.column_field: self._column,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
            "on_error": self.config.on_error,
        }

    def inventory(self) -> Inventory:
        """What was left out of a folder of files."""
        left_out = dict(self._files.left_out)
        why = {kind: WHY[kind] for kind in left_out if kind in WHY}
        return replace(super().inventory(), left_out=left_out, why_left_out=why)

    @cached_property
    def _schema(self) -> Any:
        with file_errors(self._location.text):
            return self._files.schema

    @cached_property
    def _num_rows(self) -> int:
        with file_errors(self._location.text):
            return self._files.num_rows

    @property
    def num_rows(self) -> int:
        """Rows of the files, as their ends tell."""
        return self._num_rows

    @cached_property
    def _kept(self) -> NDArray[np.bool_] | None:
        """Which rows of the file are read; None for all."""
        if self.config.splits is None:
            return None
        if SPLIT not in self._columns:
            raise UserError(
                f"data.splits={listed(self.config.splits)}: {self.config.path} has no column "
                f"{SPLIT}, only {listed(self._columns)}; leave data.splits out"
            )
        self._check_once("splits", SPLIT)
        column = self._read_column(SPLIT)
        with file_errors(self._location.text):
            column = column.cast(pa.string(), safe=False)
            available = sorted(pc.unique(column.drop_null()).to_pylist())
        splits = choose_splits(self.config, available)
        kept: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(splits)).to_numpy()
        return kept

    @property
    def _columns(self) -> list[str]:
        with file_errors(self._location.text):
            return self._files.names

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
        """A whole column."""
        with file_errors(self._location.text):
            return self._files.read([name]).column(name)

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
            return self._files.read(found)

    def _kept_parts(self) -> Iterator[tuple[int, Any, NDArray[np.int64]]]:
        """The column of samples part by part: first row, Arrow array, offsets of kept rows.

        Raises UserError if the parts do not have the rows that the file's end tells of.
        """
        start, kept = 0, self._kept
        with file_errors(self._location.text):
            for group, size in enumerate(self._files.group_sizes):
                end = start + size
                if kept is None or kept[start:end].any():
                    row = start
                    for part in self.parts(group):
                        mask = np.ones(len(part), np.bool_) if kept is None else kept[row:end]
                        yield row, part, np.flatnonzero(mask[: len(part)])
                        row += len(part)
                    if row != end:
                        raise ValueError(f"{row - start:,} rows, not {end - start:,}")
                start = end

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return self._files.place(row)

    def group_sizes(self) -> list[int]:
        """Number of rows in each row group."""
        with file_errors(self._location.text):
            return self._files.group_sizes

    def parts(self, group: int) -> Iterator[Any]:
        """The column of samples in a row group, a few hundred rows at a time."""
        yield from self._files.batches(group, self._column, _BATCH_ROWS)

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
            labels, names = labels_in(column, name)
        if names is None and len(labels):
            known = _names_in_schema(self._schema.metadata or {}, name)
            names = known if known is not None and labels.max() < len(known) else None
        return labels, names


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
