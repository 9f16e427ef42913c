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
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from conr_ray.data.sources.files import FoundFile, Location
from conr_ray.data.sources.layout import SPLITS
from conr_ray.data.sources.picture_files import ending_of, kind_of
from conr_ray.data.sources.walk import Walk, as_text
from conr_ray.errors import UserError, one_line

SPLIT = "split"
ENDINGS = frozenset({"parquet", "pq"})
_SHARD = re.compile(r"([A-Za-z]+)[-_.]\d+(-of-\d+)?$")
_OPEN_FILES = 16


@dataclass(frozen=True)
class _Footer:
    """What the end of a file tells."""

    schema: Any
    group_sizes: tuple[int, ...]


class ParquetFiles:
    """The files at a location, sorted by path; a row of the table is one of theirs."""

    def __init__(self, location: Location) -> None:
        """Of a file, a folder or a pattern such as data/train-*.parquet; nothing is read yet."""
        self._location = location
        self.left_out: Counter[str] = Counter()
        self._opened = lru_cache(_OPEN_FILES)(self._open)

    @cached_property
    def files(self) -> list[FoundFile]:
        """The files, by their paths below the location; "" is the location itself.

        Raises:
            UserError: there are none.
        """
        location = self._location
        try:
            info = location.filesystem.get_file_info(location.path.rstrip("/") or "/")
            if info.type == fs.FileType.Directory:
                found = self._in_folder()
            elif info.type == fs.FileType.File or not _is_pattern(location.path):
                return [FoundFile("", info.size or 0, info.mtime_ns or 0)]
            else:
                found = self._of_pattern()
        # A path with a zero byte is a ValueError; what stores raise is of many kinds.
        except Exception as error:
            raise UserError(
                f"data.path={location.text}: cannot be listed ({one_line(error)}); name a Parquet "
                "file, or a folder of them"
            ) from None
        if not found:
            raise UserError(
                f"data.path={location.text}: no Parquet files; name a Parquet file, or a folder of "
                "them"
            )
        return sorted(found, key=lambda file: file.name)

    def _in_folder(self) -> list[FoundFile]:
        walk, found = Walk(self._location), []
        for file in walk:
            if ending_of(file.name) in ENDINGS and not _is_note(file.name):
                found.append(file)
            else:
                self.left_out[kind_of(file.name)] += 1
        self.left_out.update(walk.left_out)
        return found

    def _of_pattern(self) -> list[FoundFile]:
        path = self._location.path
        above, base = self._base.rstrip("/"), PurePosixPath(path)
        selector = fs.FileSelector(above or "/", recursive=True, allow_not_found=True)
        infos = self._location.filesystem.get_file_info(selector)
        files = [
            FoundFile(info.path[len(above) + 1 :], info.size, info.mtime_ns)
            for info in infos
            if info.type == fs.FileType.File and _matches(info.path, base.parts)
        ]
        return [file for file in files if not _is_note(file.name) and not _is_hidden(file.name)]

    @cached_property
    def _base(self) -> str:
        """The path that the names of files are below."""
        path = self._location.path
        if not _is_pattern(path):
            return path
        parts = path.split("/")
        first = next(place for place, part in enumerate(parts) if _is_pattern(part))
        return "/".join(parts[:first]) or "/"

    def path_of(self, number: int) -> str:
        """The path of a file in its file system."""
        name = self.files[number].name
        if not name:
            return self._location.path
        above = self._location.path
        if self._location.filesystem.get_file_info(above).type != fs.FileType.Directory:
            above = self._base
        return f"{above.rstrip('/')}/{name}"

    def _open(self, number: int) -> Any:
        shown = as_text(self.files[number].name)
        try:
            opened = self._location.filesystem.open_input_file(self.path_of(number))
            return pq.ParquetFile(opened, page_checksum_verification=True)
        except FileNotFoundError:
            problem = "no such file"
        # Of a damaged file Arrow raises errors of many kinds.
        except Exception as error:
            problem = f"not a Parquet file ({one_line(error)})"
        where = f"{shown} is " if shown else ""
        raise UserError(f"data.path={self._location.text}: {where}{problem}; name a Parquet file")

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
                    f"data.path={self._location.text}: {shown} has {has} {name}, of which the "
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
            splits = [_split_of(file.name) for file in self.files]
            if all(splits):
                found[SPLIT] = splits
        return found


def _is_note(name: str) -> bool:
    """Whether it is as _SUCCESS and _metadata, by the programs that write such folders."""
    return name.rpartition("/")[2].startswith("_")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matches(path: str, pattern: tuple[str, ...]) -> bool:
    """Whether a path is of a pattern, of which ** stands for any number of folders."""
    parts = PurePosixPath(path).parts
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(
            _matches("/".join(parts[place:]), pattern[1:]) for place in range(len(parts) + 1)
        )
    return (
        bool(parts)
        and fnmatchcase(parts[0], pattern[0])
        and (_matches("/".join(parts[1:]), pattern[1:]) if len(parts) > 1 else not pattern[1:])
    )


def _typed(values: Sequence[str | None]) -> list[Any]:
    """Values of a partition as whole numbers, if all are."""
    if all(value is None or re.fullmatch(r"-?\d{1,18}", value) for value in values):
        return [None if value is None else int(value) for value in values]
    return list(values)


def _split_of(name: str) -> str | None:
    """The split that a file is called by: its name, or the first folder it is in."""
    *folders, last = name.split("/")
    for part in folders:
        if part.lower() in SPLITS:
            return part
    stem = last.rpartition(".")[0]
    shard = _SHARD.fullmatch(stem)
    word = shard[1] if shard else stem
    return word if word.lower() in SPLITS else None
