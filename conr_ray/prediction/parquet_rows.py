"""Rows of Parquet files as new samples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.inventory import Inventory, counted
from conr_ray.data.sources.files import FoundFile, locate
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.vectors import VectorsSource, vectors_in
from conr_ray.data.sources.walk import as_text, from_text
from conr_ray.errors import UserError, one_line
from conr_ray.prediction.listing import Listing, is_parquet
from conr_ray.prediction.samples import Kind, NewSamples, SampleForm
from conr_ray.storage.patience import WAITS_S, is_final


class ParquetRows(NewSamples):
    """The rows of a Parquet file, or of all those below a folder."""

    def __init__(
        self, form: SampleForm, text: str, column: str, listing: Listing | None = None
    ) -> None:
        """Those of the file `text`, or of the files of a folder's `listing`.

        `column` holds the samples.
        """
        super().__init__(form)
        self._location, self._column_name = locate(text), column
        self._is_file, self._listing = listing is None, listing
        self._sizes: dict[FoundFile, list[int]] = {}
        self.keys = ("row",) if self._is_file else ("file", "row")

    def __getstate__(self) -> dict[str, Any]:
        """What is read of a piece needs no sizes of all files."""
        return {**self.__dict__, "_sizes": {}}

    @property
    def what(self) -> str:
        """Parquet."""
        return "parquet"

    @property
    def place(self) -> str:
        """The absolute path or the URI, and the column."""
        return f"{self._location.uri}#{self._column_name}"

    def count(self) -> int:
        """How many rows there are in the files that can be opened."""
        count = sum(self._num_rows(file) for file in self._files())
        if not count:
            text = self._location.text
            raise UserError(f"data.path={text}: no rows; name a Parquet file with rows")
        return count

    def line(self, count: int, more: str = "") -> str:
        """With the number of files, and what was left out of their folder."""
        told = super().line(count, more)
        if self._listing is None:
            return told
        found = Inventory(left_out=self._listing.left_out)
        files = counted(len(self._sizes), "file", "files")
        return f"{told} in {files}{found.of_left_out()}"

    def _files(self) -> Iterator[FoundFile]:
        if self._listing is None:
            yield self._location.file()
            return
        found = (file for file in self._listing if is_parquet(file.name))
        yield from sorted(found, key=lambda file: file.name)

    def _group_sizes(self, file: FoundFile) -> list[int]:
        """Rows of each row group; of a file that has been opened before, what it had then."""
        if (sizes := self._sizes.get(file)) is None:
            sizes = self._sizes[file] = list(self._source(file).group_sizes())
        return sizes

    def _num_rows(self, file: FoundFile) -> int:
        try:
            return sum(self._group_sizes(file))
        except UserError:
            if self._is_file:
                raise
            # One row tells of it.
            return 1

    def _source(self, file: FoundFile) -> ParquetSource | VectorsSource:
        uri = self._location.text_of(file.name)
        return _opened(uri, self.form.kind, self._column_name, file)

    def pieces(self) -> Iterator[pa.Table]:
        """A piece for each row group; one without a row for a file that cannot be opened."""
        for file in self._files():
            try:
                sizes = self._group_sizes(file)
            except UserError:
                yield self._piece(file, pa.array([None], pa.int64()))
                continue
            start = 0
            for size in sizes:
                yield self._piece(file, pa.array(np.arange(start, start + size)))
                start += size

    def _piece(self, file: FoundFile, rows: pa.Array) -> pa.Table:
        same = {"size": file.size, "mtime_ns": file.mtime_ns}
        columns = {"row": rows} | {
            name: pa.repeat(pa.scalar(value, pa.int64()), len(rows)) for name, value in same.items()
        }
        if not self._is_file:
            columns["file"] = pa.repeat(pa.scalar(as_text(file.name)), len(rows))
        return pa.table({name: columns[name] for name in (*self.keys, *same)})

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """Batches of the row group, which is read as far as the last row of the piece."""
        rows = piece.column("row").to_numpy(zero_copy_only=False)
        name = "" if self._is_file else from_text(piece.column("file")[0].as_py())
        file = FoundFile(name, piece.column("size")[0].as_py(), piece.column("mtime_ns")[0].as_py())
        done = 0
        for wait_s in (None,) if self._location.is_local else (*WAITS_S, None):
            try:
                for batch in self._read(file, piece, rows, done):
                    done += len(batch)
                    yield batch
                return
            # Arrow raises errors of many kinds.
            except Exception as error:
                reason = one_line(error)
            if wait_s is None or is_final(reason):
                break
            time.sleep(wait_s)
            _opened.cache_clear()
        for start in range(done, len(piece), self.form.batch_rows):
            some = piece.slice(start, self.form.batch_rows)
            none = np.zeros((len(some), *self.form.shape), self.form.dtype)
            yield self.form.batch(some, none, [reason] * len(some))

    def _read(
        self, file: FoundFile, piece: pa.Table, rows: NDArray[Any], done: int
    ) -> Iterator[pa.Table]:
        """The batches of the rows of a piece from number `done` on."""
        source = self._source(file)
        for first, part in _parts_from(source, int(rows[0])):
            stop = int(np.searchsorted(rows, first + len(part)))
            if stop > done:
                offsets = rows[done:stop] - first
                yield from self._batches(source, part, offsets, piece.slice(done, stop - done))
                done = stop
        if done < len(rows):
            raise ValueError(f"the row group has {len(rows) - done} rows less than it should")

    def _batches(
        self, source: Any, part: pa.Array, offsets: NDArray[Any], rows: pa.Table
    ) -> Iterator[pa.Table]:
        for start in range(0, len(offsets), self.form.batch_rows):
            some = rows.slice(start, self.form.batch_rows)
            chosen = part.take(pa.array(offsets[start : start + self.form.batch_rows]))
            if self.form.kind == "images":
                yield self.decoded(some, source.images_in(chosen))
            else:
                yield self.form.batch(some, *vectors_in(chosen, self.form.shape[0]))


def _parts_from(source: Any, row: int) -> Iterator[tuple[int, pa.Array]]:
    """The parts of the row group that begins at or before a row: first row, and column."""
    start = 0
    for group, size in enumerate(source.group_sizes()):
        if start <= row < start + size:
            for part in source.parts(group):
                yield start, part
                start += len(part)
            return
        start += size


@lru_cache(8)
def _opened(uri: str, kind: Kind, column: str, version: FoundFile) -> ParquetSource | VectorsSource:
    """A Parquet file with the column checked; another one if `version` has changed."""
    source: ParquetSource | VectorsSource
    if kind == "images":
        source = ParquetSource(DataConfig(source="parquet", path=uri, image_column=column))
    else:
        source = VectorsSource(DataConfig(source="vectors", path=uri, vector_column=column))
    source.check_column()
    return source


def is_folder(text: str) -> bool:
    """Whether a path or URI is a folder; raises UserError if there is nothing."""
    location = locate(text)
    try:
        kind = location.kind()
    # A path with a zero byte is a ValueError.
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.path={text}: cannot be opened ({one_line(error)}); name what can be read"
        ) from None
    if kind.name == "NotFound":
        raise UserError(
            f"data.path={text}: there is nothing; name a folder of images, or a Parquet file"
        )
    return bool(kind.name == "Directory")
