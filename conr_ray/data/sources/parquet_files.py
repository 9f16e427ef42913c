"""One Parquet file, or those of a folder or a pattern, as one table.

Hive partitions (`label=cat/part-0.parquet`) are columns. So is `split`, if there is no other, and
all files are called as data hubs do (train-00000-of-00002.parquet) or are in folders of such names.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from conr_ray.data.sources.fetching import opened_here
from conr_ray.data.sources.files import WEB, FoundFile, Location
from conr_ray.data.sources.patterns import FileSet, split_of
from conr_ray.data.sources.walk import as_text
from conr_ray.errors import UserError, one_line

SPLIT = "split"
ENDINGS = frozenset({"parquet", "pq"})
_OPEN_FILES = 16


@dataclass(frozen=True)
class _Footer:
    """What the end of a file tells."""

    schema: Any
    group_sizes: tuple[int, ...]


class ParquetFiles:
    """The files at a location, sorted by path; a row of the table is one of theirs."""

    def __init__(self, text: str) -> None:
        """Of a file, a folder or a pattern such as data/train-*.parquet; nothing is read yet."""
        self._set = FileSet(text, ENDINGS, "Parquet file")
        self._opened = lru_cache(_OPEN_FILES)(self._open)

    @property
    def files(self) -> list[FoundFile]:
        """The files; see `FileSet`."""
        return self._set.files

    @property
    def base(self) -> Location:
        """The folder that their names are below, or the file."""
        return self._set.base

    @property
    def left_out(self) -> Counter[str]:
        """What else a folder holds."""
        return self._set.left_out

    def _open(self, number: int) -> Any:
        shown = as_text(self.files[number].name)
        try:
            location = self._set.location_of(number)
            # Few web servers send parts as reliably as stores do.
            is_web = location.path.partition("://")[0] in WEB
            opened = (
                pa.PythonFile(opened_here(location), "r")
                if is_web
                else location.filesystem.open_input_file(location.path)
            )
            return pq.ParquetFile(opened, page_checksum_verification=True)
        except FileNotFoundError:
            problem = "no such file"
        # Of a damaged file Arrow raises errors of many kinds.
        except Exception as error:
            problem = f"not a Parquet file ({one_line(error)})"
        where = f"{shown} is " if shown else ""
        raise UserError(f"data.path={self._set.text}: {where}{problem}; name a Parquet file")

    @cached_property
    def _footers(self) -> list[_Footer]:
        footers = []
        for number in range(len(self.files)):
            file = self._opened(number)
            end = file.metadata
            sizes = tuple(end.row_group(group).num_rows for group in range(end.num_row_groups))
            if sum(sizes) != end.num_rows:
                raise ValueError(f"{sum(sizes):,} rows, not {end.num_rows:,}")
            footers.append(_Footer(file.schema_arrow, sizes))
        return footers

    @property
    def schema(self) -> Any:
        """The Arrow schema of the first file."""
        return self._footers[0].schema

    @property
    def names(self) -> list[str]:
        """Columns of the first file, which may be of one name, and of partitions."""
        return [*self.schema.names, *self._partitions]

    def type_of(self, name: str) -> Any:
        """The Arrow type of a column in the first file."""
        if name in self._partitions:
            return pa.array(self._partitions[name]).type
        return self.schema.field(name).type

    @cached_property
    def group_sizes(self) -> list[int]:
        """Number of rows in each row group of all files."""
        return [size for footer in self._footers for size in footer.group_sizes]

    @property
    def num_rows(self) -> int:
        """Number of rows of all files."""
        return sum(self.group_sizes)

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        number = bisect_right(self._starts, row) - 1
        name = as_text(self.files[number].name)
        return f"row {row - self._starts[number]}" + (f" of {name}" if name else "")

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for footer in self._footers[:-1]:
            starts.append(starts[-1] + sum(footer.group_sizes))
        return starts

    def batches(self, group: int, column: str, rows: int) -> Iterator[Any]:
        """A column of a row group of all, at most so many rows at a time."""
        number = 0
        while group >= (count := len(self._footers[number].group_sizes)):
            group, number = group - count, number + 1
        if column in self._partitions:
            whole = pa.array([self._partitions[column][number]] * self._num_rows_of(number))
            yield whole.slice(0, self._footers[number].group_sizes[group])
            return
        self._check_has(number, [column])
        file = self._opened(number)
        for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
            yield batch.column(column)

    def read(self, names: Sequence[str]) -> Any:
        """Some whole columns as an Arrow table; types of several files become one."""
        parts = []
        for number in range(len(self.files)):
            own = [name for name in names if name not in self._partitions]
            self._check_has(number, own)
            length = self._num_rows_of(number)
            table = self._opened(number).read(columns=own) if own else None
            columns = {}
            for name in names:
                if name in self._partitions:
                    value = self._partitions[name][number]
                    columns[name] = pa.chunked_array([pa.array([value] * length)])
                else:
                    assert table is not None
                    columns[name] = table.column(name)
                if len(columns[name]) != length:
                    raise ValueError(f"{len(columns[name]):,} rows of {name}, not {length:,}")
            parts.append(pa.table(columns))
        return pa.concat_tables(parts, promote_options="permissive")

    def _num_rows_of(self, number: int) -> int:
        return sum(self._footers[number].group_sizes)

    def _check_has(self, number: int, names: Sequence[str]) -> None:
        found = self._footers[number].schema.names
        for name in names:
            if found.count(name) != 1:
                has = "no column" if name not in found else f"{found.count(name)} columns"
                shown = as_text(self.files[number].name)
                raise UserError(
                    f"data.path={self._set.text}: {shown} has {has} {name}, of which the "
                    "first file has one; leave the file out, or repair it"
                )

    @cached_property
    def _partitions(self) -> dict[str, list[Any]]:
        """Columns that the paths of files tell: the value of each file."""
        folders = [file.name.split("/")[:-1] for file in self.files]
        keys = dict.fromkeys(
            part.partition("=")[0] for parts in folders for part in parts if "=" in part
        )
        keys = {key: None for key in keys if key and key not in self.schema.names}
        found: dict[str, list[Any]] = {}
        if keys:
            hive = ds.HivePartitioning(pa.schema([(key, pa.string()) for key in keys]))
            values = [ds.get_partition_keys(hive.parse("/".join(parts) + "/")) for parts in folders]
            found = {key: _typed([of.get(key) for of in values]) for key in keys}
        if SPLIT not in (*self.schema.names, *found):
            splits = [split_of(file.name) for file in self.files]
            if all(splits):
                found[SPLIT] = splits
        return found


def _typed(values: Sequence[str | None]) -> list[Any]:
    """Values of a partition as whole numbers, if all are."""
    if all(value is None or re.fullmatch(r"-?\d{1,18}", value) for value in values):
        return [None if value is None else int(value) for value in values]
    return list(values)
