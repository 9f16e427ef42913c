"""Thumbnails of the curated samples' pictures, read once, a few hundred at a time.

Shapes: n samples.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.cores import usable_cores
from conr_ray.curation.alignment import SIDE
from conr_ray.data.decoding import reason_of, to_mode
from conr_ray.data.pictures import small_file
from conr_ray.data.sources import make_source
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.files import FoundFile, Location, locate
from conr_ray.data.sources.forms import form_of
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.picture_files import open_file
from conr_ray.data.sources.walk import from_text
from conr_ray.data.store import DataSet
from conr_ray.errors import UserError

_BLOCK = 256

Opened = Callable[[], Image.Image]


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures of all samples.

    Attributes:
        pixels_n: uint8 (n, 3, SIDE, SIDE), a file.
        areas_n: pixels of the whole pictures, int64; 0 for what has none.
        unread: why a row has none.
    """

    pixels_n: NDArray[np.uint8]
    areas_n: NDArray[np.int64]
    unread: dict[int, str] = field(default_factory=dict)

    @property
    def has_n(self) -> NDArray[np.bool_]:
        """Which samples have one."""
        return self.areas_n > 0

    @property
    def contrasts_n(self) -> NDArray[np.float32]:
        """Deviation of the pixels of each from their mean, 0 to 127."""
        found = np.empty(len(self.areas_n), np.float32)
        for start in range(0, len(found), _BLOCK):
            part = self.pixels_n[start : start + _BLOCK].reshape(-1, 3, SIDE * SIDE)
            found[start : start + _BLOCK] = part.astype(np.float32).std(2).max(1)
        return found


class Pictures(ABC):
    """Where the pictures of samples are."""

    def __init__(self, what: str, place: str) -> None:
        """`what` and `place` as prediction.json tells them."""
        self.what, self.place = what, place

    @abstractmethod
    def opened(self) -> Iterator[tuple[NDArray[np.int64], list[Opened]]]:
        """Rows of samples, and what opens the picture of each; samples without one are left out."""

    @abstractmethod
    def only(self, rows: list[int]) -> Pictures:
        """Those of some samples, which are numbered from 0."""

    def shown(self, rows: list[int]) -> dict[int, bytes]:
        """Small files of the pictures of some samples, by row; without those that have none."""
        found = {}
        for places, opened in self.only(rows).opened():
            for place, one in zip(places.tolist(), opened, strict=True):
                # Decoders raise errors of many kinds.
                with suppress(Exception):
                    found[rows[place]] = small_file(one())
        return found

    def path(self, row: int) -> str | None:
        """Of a sample's file in `place`; None if it is no file."""
        return None

    def thumbnails(self, num_rows: int, folder: Path) -> Thumbnails:
        """Read all, into a file in `folder`.

        Raises:
            UserError: none can be read.
        """
        shape = num_rows, 3, SIDE, SIDE
        pixels_n = np.lib.format.open_memmap(folder / "thumbnails.npy", "w+", np.uint8, shape)
        found = Thumbnails(pixels_n, np.zeros(num_rows, np.int64))
        with ThreadPoolExecutor(max(2, usable_cores())) as pool:
            for rows, opened in self.opened():
                for row, made in zip(rows.tolist(), pool.map(_thumbnail, opened), strict=True):
                    if isinstance(made, str):
                        found.unread[row] = made
                    else:
                        found.pixels_n[row], found.areas_n[row] = made
        if not found.has_n.any():
            reason = next(iter(found.unread.values()), "no sample has one")
            raise UserError(
                f"--images {self.place}: no picture can be read ({reason}): name where those of "
                "the vectors are, or leave it out"
            )
        return found


def _thumbnail(opened: Opened) -> tuple[NDArray[np.uint8], int] | str:
    """Pixels and area of a picture, or why it has none."""
    try:
        picture = opened()
        area = picture.width * picture.height
        # JPEG is decoded at an eighth of its size, if it is so large.
        picture.draft("RGB", (4 * SIDE, 4 * SIDE))
        small = to_mode(picture, "RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return np.asarray(small, np.uint8).transpose(2, 0, 1), area
    # Decoders raise errors of many kinds.
    except Exception as error:
        return reason_of(error)


class FolderPictures(Pictures):
    """Files of a folder, here or in a bucket, by their paths in it."""

    def __init__(self, place: str, paths: pa.ChunkedArray) -> None:
        """Those at `paths`, a column of strings."""
        super().__init__("folder", place)
        self._location, self._paths = locate(place), paths

    def only(self, rows: list[int]) -> Pictures:
        """Their paths."""
        return FolderPictures(self.place, self._paths.take(pa.array(rows, pa.int64())))

    def path(self, row: int) -> str | None:
        """As given."""
        path: str | None = self._paths[row].as_py()
        return path

    def opened(self) -> Iterator[tuple[NDArray[np.int64], list[Opened]]]:
        """In order."""
        for start in range(0, len(self._paths), _BLOCK):
            paths = self._paths.slice(start, _BLOCK).to_pylist()
            rows = np.arange(start, start + len(paths))
            yield rows, [partial(_open_file, self._location, path) for path in paths]


def _open_file(location: Location, path: str | None) -> Image.Image:
    if path is None:
        raise ValueError("it has no path")
    name = os.path.normpath(from_text(path))
    # A table from elsewhere may name anything.
    if name.startswith(("/", "../")):
        raise ValueError(f"{path} is outside the folder")
    return open_file(location, FoundFile(name, 0, 0))


class ParquetPictures(Pictures):
    """A column of a Parquet file, or of the files of a folder, by file and row."""

    def __init__(self, place: str, column: str, keys: pa.Table) -> None:
        """Those that `keys` name by row, and by file for a folder."""
        super().__init__("parquet", f"{place}#{column}")
        self._text, self._column, self._keys = place, column, keys

    def only(self, rows: list[int]) -> Pictures:
        """Their files and rows."""
        keys = self._keys.take(pa.array(rows, pa.int64()))
        return ParquetPictures(self._text, self._column, keys)

    def opened(self) -> Iterator[tuple[NDArray[np.int64], list[Opened]]]:
        """File by file, a part of a row group at a time."""
        rows_n = self._keys.column("row").to_numpy()
        files: list[str | None] = [None]
        if "file" in self._keys.column_names:
            files = pc.unique(self._keys.column("file")).to_pylist()
        for name in files:
            of_file = np.arange(len(rows_n))
            if name is not None:
                same = pc.equal(self._keys.column("file"), name)
                of_file = np.flatnonzero(same.to_numpy(zero_copy_only=False))
            of_file = of_file[np.argsort(rows_n[of_file], kind="stable")]
            wanted = rows_n[of_file]
            path = self._text if name is None else f"{self._text.rstrip('/')}/{name}"
            source = ParquetSource(
                DataConfig(source="parquet", path=path, image_column=self._column)
            )
            source.check_column()
            first = 0
            for group, size in enumerate(source.group_sizes()):
                begin, end = np.searchsorted(wanted, [first, first + size])
                start = first
                for part in source.parts(group) if end > begin else ():
                    low, high = np.searchsorted(wanted, [start, start + len(part)])
                    chosen = part.take(pa.array(wanted[low:high] - start))
                    yield of_file[low:high], source.images_in(chosen)
                    start += len(part)
                first += size


class RowPictures(Pictures):
    """Images of an archive, a list or an array, by their paths or rows."""

    def __init__(self, source: ImagesByRow, place: str, keys: list[Any]) -> None:
        """Those that `keys` name in `source`; what is not there has no picture."""
        super().__init__(source.config.source, place)
        self._source, self._keys = source, keys

    def only(self, rows: list[int]) -> Pictures:
        """Their keys."""
        return RowPictures(self._source, self.place, [self._keys[row] for row in rows])

    def path(self, row: int) -> str | None:
        """The name that tells it from the others, if there are names."""
        key = self._keys[row]
        return key if isinstance(key, str) else None

    def opened(self) -> Iterator[tuple[NDArray[np.int64], list[Opened]]]:
        """In order."""
        names = self._source.names
        there = range(self._source.num_rows)
        row_of: dict[Any, int] = dict(zip(there if names is None else names, there, strict=True))
        for start in range(0, len(self._keys), _BLOCK):
            some = self._keys[start : start + _BLOCK]
            known = [offset for offset, key in enumerate(some) if key in row_of]
            if known:
                opened = [self._source.at(row_of[some[offset]]).open for offset in known]
                yield start + np.array(known), opened


class DataPictures(Pictures):
    """The decoded images of a data set, row for row those of the samples."""

    def __init__(self, data: DataSet, place: str, rows: list[int] | None = None) -> None:
        """Those of `data`, or what a backbone has embedded for it, at some `rows`."""
        super().__init__("data", place)
        self._data = data
        pixels = data.rows if data.images is None else data.images.rows
        self._rows = pixels if rows is None else pixels[rows]

    def only(self, rows: list[int]) -> Pictures:
        """Their pixels."""
        return DataPictures(self._data, self.place, rows)

    def path(self, row: int) -> str | None:
        """In the folder of the data."""
        return None if self._data.names is None else self._data.names[row]

    def opened(self) -> Iterator[tuple[NDArray[np.int64], list[Opened]]]:
        """In order."""
        for start in range(0, len(self._rows), _BLOCK):
            part = self._rows[start : start + _BLOCK]
            rows = np.arange(start, start + len(part))
            yield rows, [partial(_of_pixels, pixels) for pixels in part]


def _of_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def pictures_at(place: str, column: str, keys: pa.Table) -> Pictures:
    """The pictures at a path or URI, of samples that `keys` name.

    Raises:
        UserError: the keys name none there.
    """
    name = next((name for name in ("path", "row") if name in keys.column_names), None)
    if name is not None and "file" not in keys.column_names:
        source = form_of(place, column)
        if source not in ("folder", "parquet"):
            by_row = make_source(DataConfig(source=source, path=place, image_column=column))
            assert isinstance(by_row, ImagesByRow), "all other forms are"
            return RowPictures(by_row, f"{place}#{column}", keys.column(name).to_pylist())
    if name == "path":
        return FolderPictures(place, keys.column("path"))
    if "row" in keys.column_names:
        return ParquetPictures(place, column, keys)
    raise UserError(
        f"--images {place}: the vectors have neither a column path nor row that names pictures: "
        "leave it out, or add one"
    )
