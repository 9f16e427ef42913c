"""New samples: what there is to predict, in pieces, and how a piece is read.

A piece is a small table of what to read. A batch is a table of samples that are read, with the
columns of its piece, and

reason     why the sample could not be read, else null
samples    its bytes, of fixed size: those of an array like the run's samples

Shapes: n samples of a batch; (c, h, w) of an image, (d,) of a vector.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from conr_ray.config import DataConfig
from conr_ray.cores import usable_cores
from conr_ray.data.sources.encoded import batched, conformed
from conr_ray.data.sources.files import FoundFile, locate
from conr_ray.data.sources.folder import as_text, is_image, open_file
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.vectors import VectorsSource, vectors_in
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError, one_line
from conr_ray.prediction.patience import WAITS_S, is_final, patient

Kind = Literal["images", "vectors"]
_BATCH_ROWS, _BATCH_BYTES = 256, 32 * 2**20
# Threads gain little where decoding is all that they do, much where they wait for a store.
_NUM_THREADS = min(16, max(2, usable_cores()))


@dataclass(frozen=True)
class SampleForm:
    """The form of a run's samples.

    Attributes:
        shape: (c, h, w) of images, (d,) of vectors.
        stored_size: `data.stored_size` of the run.
    """

    shape: tuple[int, ...]
    stored_size: int | None

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "vectors" if len(self.shape) == 1 else "images"

    @property
    def dtype(self) -> type[Any]:
        """float32 of vectors, uint8 of images."""
        return np.float32 if self.kind == "vectors" else np.uint8

    @property
    def batch_rows(self) -> int:
        """Samples of a batch."""
        num_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES // num_bytes))

    def batch(self, piece: pa.Table, values: NDArray[Any], reasons: Sequence[str | None]) -> Any:
        """A batch of samples (n, *shape) that are read."""
        flat = np.ascontiguousarray(values, self.dtype).reshape(len(values), -1)
        width = flat.shape[1] * flat.itemsize
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(flat), [None, pa.py_buffer(flat.data)]
        )
        piece = piece.append_column("reason", pa.array(reasons, pa.string()))
        return piece.append_column("samples", column)

    def values(self, batch: pa.Table) -> NDArray[Any]:
        """The samples of a batch, (n, *shape)."""
        column = batch.column("samples").combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        size = column.type.byte_width
        data = column.buffers()[1].slice(column.offset * size, len(column) * size)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape)


class NewSamples(ABC):
    """Samples to predict; picklable.

    Attributes:
        form: of the run's samples, to which these are brought.
    """

    keys: tuple[str, ...]
    """Columns that tell a sample from all others."""

    def __init__(self, form: SampleForm) -> None:
        """Keep the form; nothing is opened."""
        self.form = form

    @property
    @abstractmethod
    def what(self) -> str:
        """Kind of samples: `folder`, `parquet` or `dataset NAME`."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where they are, the same however that is written."""

    @abstractmethod
    def count(self) -> int:
        """How many there are.

        Raises:
            UserError: there are none, or they cannot be listed.
        """

    @abstractmethod
    def pieces(self) -> Iterator[pa.Table]:
        """Tables of what to read, with the columns `keys`; lazily, in the same order each time."""

    @abstractmethod
    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """The batches of a piece, or of some rows of it."""

    def _decoded(self, rows: pa.Table, opened: Sequence[Callable[[], Image.Image]]) -> pa.Table:
        values = np.zeros((len(opened), *self.form.shape), np.uint8)
        tasks = batched(range(len(opened)), 32)
        parts = _pool().map(partial(_decode, values, opened, self.form), tasks)
        return self.form.batch(rows, values, [reason for part in parts for reason in part])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_THREADS, "decode")


def _decode(
    values: NDArray[np.uint8],
    opened: Sequence[Callable[[], Image.Image]],
    form: SampleForm,
    rows: Sequence[int],
) -> list[str | None]:
    """Decode images into rows of `values`; returns what is wrong with each."""
    channels, height, width = form.shape
    reasons: list[str | None] = []
    for row in rows:
        reason = None
        try:
            values[row] = conformed(opened[row](), (channels, height, width), form.stored_size)
        except UnidentifiedImageError:
            # PIL's own message contains the address of a buffer.
            reason = "unknown image format"
        # Decoders and stores raise errors of many kinds.
        except Exception as error:
            reason = one_line(error)
        reasons.append(reason)
    return reasons


class FolderImages(NewSamples):
    """The images below a folder, those in hidden folders left out."""

    keys = ("path",)

    def __init__(self, form: SampleForm, text: str) -> None:
        """Those of the folder or URI `text`."""
        super().__init__(form)
        self._location = locate(text)

    @property
    def what(self) -> str:
        """A folder."""
        return "folder"

    @property
    def place(self) -> str:
        """Kind of file system and path."""
        return self._location.identity

    def count(self) -> int:
        """How many files are images by their endings."""
        count = sum(1 for _ in self._files())
        if not count:
            raise UserError(
                f"data.path={self._location.text}: no images; name a folder with images, or a "
                "Parquet file"
            )
        return count

    def _files(self) -> Iterator[FoundFile]:
        for file in self._location.files_below([""]):
            hidden = file.name.startswith(".") or "/." in file.name
            if is_image(file.name) and not hidden:
                yield file

    def pieces(self) -> Iterator[pa.Table]:
        """`name` has the bytes of the path, which may be no text."""
        for files in batched(self._files(), self.form.batch_rows):
            yield pa.table(
                {
                    "path": [as_text(file.name) for file in files],
                    "size": [file.size for file in files],
                    "mtime_ns": [file.mtime_ns for file in files],
                    "name": pa.array([os.fsencode(file.name) for file in files], pa.binary()),
                }
            )

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """One batch."""
        names = piece.column("name").to_pylist()
        opened = [
            partial(
                patient(open_file, self._location.is_local), self._location, self._found(name, size)
            )
            for name, size in zip(names, piece.column("size").to_pylist(), strict=True)
        ]
        yield self._decoded(piece.drop_columns("name"), opened)

    def _found(self, name: bytes, size: int) -> FoundFile:
        return FoundFile(os.fsdecode(name), size, 0)


class ParquetRows(NewSamples):
    """The rows of a Parquet file, or of all those below a folder."""

    def __init__(self, form: SampleForm, text: str, column: str) -> None:
        """Those of the file, folder or URI `text`; `column` holds the samples."""
        super().__init__(form)
        self._location, self._column_name = locate(text), column
        self._is_file = not _is_folder(text)
        self.keys = ("row",) if self._is_file else ("file", "row")

    @property
    def what(self) -> str:
        """Parquet."""
        return "parquet"

    @property
    def place(self) -> str:
        """Kind of file system, path and column."""
        return f"{self._location.identity}#{self._column_name}"

    def count(self) -> int:
        """How many rows there are in the files that can be opened."""
        count = sum(self._num_rows(file) for file in self._files())
        if not count:
            text = self._location.text
            raise UserError(f"data.path={text}: no rows; name a Parquet file with rows")
        return count

    def _files(self) -> Iterator[FoundFile]:
        if self._is_file:
            info = self._location.filesystem.get_file_info(self._location.path)
            yield FoundFile("", info.size or 0, info.mtime_ns or 0)
            return
        found = (file for file in self._location.files_below([""]) if _is_parquet(file.name))
        yield from sorted(found, key=lambda file: file.name)

    def _num_rows(self, file: FoundFile) -> int:
        try:
            return sum(self._source(file).group_sizes())
        except UserError:
            if self._is_file:
                raise
            # One row tells of it.
            return 1

    def _source(self, file: FoundFile) -> ParquetSource | VectorsSource:
        text = self._location.text
        uri = f"{text.rstrip('/')}/{file.name}" if file.name else text
        return _opened(uri, self.form.kind, self._column_name, file)

    def pieces(self) -> Iterator[pa.Table]:
        """A piece for each row group; one without a row for a file that cannot be opened."""
        for file in self._files():
            try:
                sizes = self._source(file).group_sizes()
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
        name = "" if self._is_file else piece.column("file")[0].as_py()
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
                yield self._decoded(some, source.images_in(chosen))
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


class DataSetRows(NewSamples):
    """The samples of a data set that a config describes, from its decoded copy."""

    keys = ("row",)

    def __init__(self, form: SampleForm, name: str, config: DataConfig) -> None:
        """Those of `config`, of the preset `name`."""
        super().__init__(form)
        self._name, self._config = name, config

    @property
    def _data(self) -> DataSet:
        return _copy_of(self._config)

    @property
    def what(self) -> str:
        """The data set of a preset."""
        return f"dataset {self._name}"

    @property
    def place(self) -> str:
        """A checksum of its samples."""
        return self._data.fingerprint

    def count(self) -> int:
        """How many samples there are, if they are of the run's kind."""
        if self._data.what != self.form.kind:
            raise UserError(
                f"--dataset {self._name}: holds {self._data.what}, the run takes {self.form.kind}: "
                "name another"
            )
        return self._data.num_rows

    def pieces(self) -> Iterator[pa.Table]:
        """`index` is a row of the copy, `row` that of the whole data set."""
        ids = self._data.sample_ids
        for start in range(0, len(ids), self.form.batch_rows):
            some = ids[start : start + self.form.batch_rows]
            yield pa.table({"row": some, "index": np.arange(start, start + len(some))})

    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """One batch."""
        values = self._data.rows[piece.column("index").to_numpy()]
        rows = piece.drop_columns("index")
        if values.shape[1:] == self.form.shape:
            yield self.form.batch(rows, values, [None] * len(values))
        elif self.form.kind == "vectors":
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            yield self.form.batch(rows, *vectors_in(lists, self.form.shape[0]))
        else:
            yield self._decoded(rows, [partial(_picture, pixels) for pixels in values])


@cache
def _copy_of(config: DataConfig) -> DataSet:
    return open_data(config)


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def new_samples(form: SampleForm, text: str, column: str) -> NewSamples:
    """The samples at a path or URI: images of a folder, or rows of Parquet.

    Raises:
        UserError: there is nothing there, or not what the run takes.
    """
    if not _is_folder(text):
        return ParquetRows(form, text, column)
    files = locate(text).files_below([""])
    first = next((f for f in files if is_image(f.name) or _is_parquet(f.name)), None)
    if first is not None and _is_parquet(first.name):
        return ParquetRows(form, text, column)
    if form.kind == "vectors":
        raise UserError(
            f"data.path={text}: no Parquet files; the run takes vectors: name a Parquet file of "
            "them, and --column"
        )
    return FolderImages(form, text)


def _is_folder(text: str) -> bool:
    location = locate(text)
    try:
        info = patient(location.filesystem.get_file_info, location.is_local)(
            location.path.rstrip("/")
        )
    # A path with a zero byte is a ValueError.
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.path={text}: cannot be opened ({one_line(error)}); name what can be read"
        ) from None
    if info.type.name == "NotFound":
        raise UserError(
            f"data.path={text}: there is nothing; name a folder of images, or a Parquet file"
        )
    return bool(info.type.name == "Directory")


def _is_parquet(name: str) -> bool:
    return name.endswith((".parquet", ".pq"))
