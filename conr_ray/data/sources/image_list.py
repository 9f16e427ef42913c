"""Images that a table names by their paths or URLs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.decoders import Encoded
from conr_ray.data.inventory import Inventory
from conr_ray.data.sources.base import Contents, listed
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.encoded import PendingImage
from conr_ray.data.sources.files import WEB, Location, locate
from conr_ray.data.sources.listed_files import ENDINGS as LISTS
from conr_ray.data.sources.listed_files import CsvFiles
from conr_ray.data.sources.parquet_files import ENDINGS as PARQUET
from conr_ray.data.sources.parquet_table import ParquetTable
from conr_ray.data.sources.patterns import FileSet, has_ending
from conr_ray.data.sources.walk import as_text
from conr_ray.errors import UserError
from conr_ray.fields import short

# What people call a column of paths, in small letters; `data.image_column` comes first.
_NAMES = """
path image_path img_path file_path filepath file filename file_name image_file img image url
image_url img_url uri image_uri src
"""
_USUAL = _NAMES.split()
_DEFAULT_COLUMN = DataConfig.default_of("image_column")
_TWICE = "further rows of the same path"


class ListSource(ParquetTable, ImagesByRow):
    """The images that a column of CSV, text or Parquet files names, in the order of its rows.

    Paths are relative to the folder of the list. Of rows with the same path, the first counts.
    `data.id_column` names the samples; without it their paths do. For labels and splits see
    `ParquetTable`.
    """

    column_field = "image_column"

    def __init__(self, config: DataConfig) -> None:
        """Find the file system of `data.path`, and what a folder holds; no file is opened yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        if not _is_parquet(config.path):
            words = [*_USUAL, *filter(None, (config.image_column, config.id_column))]
            self._files: Any = CsvFiles(config.path, words)
        self._num_twice = 0

    @cached_property
    def _column(self) -> str:
        name, columns = self.config.image_column, self._columns
        if name in columns or name != _DEFAULT_COLUMN:
            return name
        usual = [column for column in columns if column.lower() in _USUAL]
        return min(usual, key=lambda column: _USUAL.index(column.lower()), default=name)

    def identity(self) -> dict[str, object]:
        """With the sizes and times of the images, if they are on this machine."""
        digest = blake2b(digest_size=16)
        for path in self._paths:
            if path is None or ("://" in path and not path.startswith("file://")):
                continue
            location, name = self._reached(path)
            if location is not None and location.is_local:
                digest.update(_version(location.path_of(name)))
        found = {"id_column": self.config.id_column, "images": digest.hexdigest()}
        return {**super().identity(), **found}

    def check_column(self) -> None:
        """Raise UserError unless the column is there and holds text."""
        super().check_column()
        kind = self._files.type_of(self._column)
        if _paths_in(pa.chunked_array([], kind)) is None:
            raise UserError(
                f"data.image_column={self._column}: holds {short(str(kind))}, not paths or URLs; "
                f"choose from {listed(self._columns)}"
            )

    def contents(self) -> Contents:
        """Number of rows, the shape of the first image, labels, and ids or paths."""
        return Contents(self.num_rows, self.image_shape, *self._labels(), self.names)

    @property
    def num_rows(self) -> int:
        """Number of rows that are read."""
        return self._num_kept()

    def inventory(self) -> Inventory:
        """With rows that are left out."""
        found = super().inventory()
        twice = {_TWICE: self._num_twice} if self._num_twice else {}
        return replace(found, left_out={**found.left_out, **twice})

    @cached_property
    def _whole_column(self) -> list[str | None]:
        self.check_column()
        found = _paths_in(self._read_column(self._column))
        assert found is not None, "checked"
        return [path or None for path in found]

    @cached_property
    def _kept(self) -> NDArray[np.bool_] | None:
        of_splits = super()._kept
        kept = np.ones(self._num_rows, np.bool_) if of_splits is None else of_splits.copy()
        if self.config.id_column is None:
            seen: set[str] = set()
            for row, path in enumerate(self._whole_column):
                if path is None or not kept[row]:
                    continue
                kept[row] = path not in seen
                self._num_twice += not kept[row]
                seen.add(path)
        return None if kept.all() else kept

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """Those that are read."""
        return np.arange(self._num_rows) if self._kept is None else np.flatnonzero(self._kept)

    @cached_property
    def _paths(self) -> list[str | None]:
        """Of the rows that are read."""
        return [self._whole_column[row] for row in self._rows.tolist()]

    @cached_property
    def names(self) -> list[str]:
        """Ids, or paths; of a row without one, its number."""
        name = self.config.id_column
        if name is None:
            rows = zip(self._rows.tolist(), self._paths, strict=True)
            return [as_text(path) if path else f"(row {row})" for row, path in rows]
        if name not in self._columns:
            raise UserError(
                f"data.id_column={name}: there is no such column; choose from "
                f"{listed(self._columns)}, or leave it out"
            )
        self._check_once("id_column", name)
        column = self._read_column(name).take(pa.array(self._rows))
        ids = [as_text(str(one)) for one in column.to_pylist() if one is not None]
        counts = pc.value_counts(pa.array(ids)).to_pylist()
        twice = [one["values"] for one in counts if one["counts"] > 1]
        if twice or len(ids) < len(column):
            problem = f"{short(twice[0])} is there twice" if twice else "a row has none"
            raise UserError(f"data.id_column={name}: {problem}; give each row an id of its own")
        return ids

    @property
    def is_remote(self) -> bool:
        """As the first image."""
        elsewhere = any(path is not None and "://" in path for path in self._paths[:1])
        return elsewhere or not self._location.is_local

    def at(self, row: int) -> PendingImage:
        """The image of a row of those that are read."""
        path = self._paths[row]
        shown = f" ({as_text(path)})" if path else ""
        place = f"{self.place(int(self._rows[row]))}{shown}"
        return PendingImage(place, Encoded(partial(self._read, path)))

    def _read(self, path: str | None) -> bytes:
        """The file at a path or URL of the list."""
        location, name = self._reached(path)
        if location is None:
            raise ValueError("no path" if path is None else "a list from elsewhere names it")
        return location.read(name)

    def _reached(self, path: str | None) -> tuple[Location | None, str]:
        """A folder, and the name of the file below it; None if nothing is to be read there."""
        if path is None:
            return None, ""
        scheme, is_uri, rest = path.partition("://")
        if is_uri and scheme.lower() in WEB:
            return locate(path), ""
        if is_uri and scheme.lower() != "file":
            bucket, _, name = rest.partition("/")
            return _located(f"{scheme}://{bucket}"), name
        is_here = self._location.is_local
        if is_uri or path.startswith(("/", "~")):
            # A list from elsewhere has no business with the files of this machine.
            whole = os.path.expanduser("/" + rest.lstrip("/") if is_uri else path)
            return (_located("/"), whole.lstrip("/")) if is_here else (None, "")
        if "\\" in path and "/" not in path:
            path = path.replace("\\", "/")
        name = posixpath.normpath(path)
        if name.startswith("../") and not is_here:
            return None, ""
        return self._folder, name

    @cached_property
    def _folder(self) -> Location:
        """The folder of the list."""
        base: Location = self._files.base
        if self._files.files[0].name:
            return base
        return base.below(base.path.partition("?")[0].rpartition("/")[0] or "/")


@lru_cache(1024)
def _located(text: str) -> Location:
    return locate(text)


def _is_parquet(path: str) -> bool:
    """Whether the table is Parquet, by its ending; in a folder, where there are no other tables."""
    plain = path.partition("?")[0]
    if has_ending(plain, PARQUET):
        return True
    if has_ending(plain, LISTS) or locate(path).kind() != fs.FileType.Directory:
        return False
    return not _holds(path, LISTS) and _holds(path, PARQUET)


def _holds(folder: str, endings: Collection[str]) -> bool:
    try:
        return bool(FileSet(folder, endings, "table").files)
    except UserError:
        return False


def _paths_in(column: Any) -> list[str | None] | None:
    """Paths in a column of text, or of structs with a path; None for other types."""
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _paths_in(column.cast(kind.value_type))
    if types.is_struct(kind) and kind.get_field_index("path") >= 0:
        return _paths_in(pc.struct_field(column, [kind.get_field_index("path")]))
    if types.is_null(kind):
        return [None] * len(column)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        found: list[str | None] = column.to_pylist()
        return found
    return None


def holds_paths(columns: list[str], image_column: str) -> bool:
    """Whether columns of these names may be those of a list of paths."""
    return image_column in columns or any(column.lower() in _USUAL for column in columns)


def _version(path: str) -> bytes:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b"-"
    return f"{status.st_size} {status.st_mtime_ns};".encode()
