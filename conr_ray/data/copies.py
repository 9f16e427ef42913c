"""What a folder of the cache keeps of images or vectors: decoded arrays, or what they come from.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import PIL
from numpy.typing import NDArray

from conr_ray.data import cache
from conr_ray.data.decoding import Form
from conr_ray.data.encoded_rows import EncodedRows, Rows
from conr_ray.data.records import RECORDS, RecordWriter
from conr_ray.data.sources import Source
from conr_ray.data.sources.encoded import EncodedSource
from conr_ray.errors import UserError
from conr_ray.storage.sealed import Damaged

# So many images tell how large the others are.
_LEAST_TOLD = 1024


class Copy(ABC):
    """Samples on their way into a folder.

    Attributes:
        unread: names of files in it that have checksums of their own.
        sums: the CRC-32 of files, by name, as far as they are known when all is written.
    """

    unread: Sequence[str] = ()

    def __init__(self, source: Source, folder: Path, shape: tuple[int, ...]) -> None:
        """Of a source that announces samples of `shape`, (n, ...).

        Raises UserError if the file system of the folder has no room.
        """
        self.sums: dict[str, int] = {}
        self._source, self._folder, self._shape = source, folder, shape

    @abstractmethod
    def blocks(self) -> Iterator[NDArray[Any]]:
        """Write the source's blocks and yield them; what it skips is missing."""

    @abstractmethod
    def written(self) -> Rows:
        """What was written, if all of it is."""

    def facts(self) -> dict[str, Any]:
        """What `opened` needs to know, as JSON values."""
        return {}

    def _check_all(self, rows: int) -> None:
        skipped, announced = len(self._source.skipped), self._shape[0]
        assert rows + skipped == announced, f"{rows} + {skipped} rows, {announced} were announced"


class DecodedCopy(Copy):
    """An array of decoded samples, which is memory-mapped."""

    def __init__(self, source: Source, folder: Path, shape: tuple[int, ...]) -> None:
        """See `Copy`."""
        super().__init__(source, folder, shape)
        needed = num_bytes(shape)
        cache.make_room(folder.parent, needed)
        free = shutil.disk_usage(folder).free
        if needed > free:
            smaller = "" if len(shape) == 2 else "lower data.stored_size, or "
            if isinstance(source, EncodedSource) and source.has_files:
                smaller = "lower data.stored_size, set data.stream=auto, or "
            raise UserError(
                f"the decoded samples take {needed >> 20:,} MiB, and {folder.parent} has "
                f"{free >> 20:,} MiB free; {smaller}set CONR_RAY_CACHE to a folder with more"
            )

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Write the .npy file.

        Writes a file, not a memory map: a full disk raises OSError for the file, but kills the
        process with SIGBUS for the map.
        """
        shape = self._shape
        descr = "<f4" if len(shape) == 2 else "|u1"
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        rows = 0
        with self._path.open("wb") as file:
            begin = _header(header)
            file.write(begin)
            total = crc32(begin)
            for block in self._source.blocks():
                whole = np.ascontiguousarray(block)
                file.write(whole.data)
                total = crc32(whole.data, total)
                rows += len(whole)
                yield whole
            self._check_all(rows)
            if rows == shape[0]:
                self.sums[self._path.name] = total
            else:
                # NumPy leaves room for any number of rows.
                again = _header({**header, "shape": (rows, *shape[1:])})
                assert len(again) == len(begin)
                file.seek(0)
                file.write(again)

    @property
    def _path(self) -> Path:
        return self._folder / _rows_file(self._shape)

    def written(self) -> Rows:
        """The memory-mapped array."""
        found: NDArray[Any] = np.load(self._path, mmap_mode="r")
        return found


class EncodedCopy(Copy):
    """Records of images, which are decoded when they are needed."""

    unread = (RECORDS,)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Write the records."""
        writer, rows = RecordWriter(self._folder), 0
        free = shutil.disk_usage(self._folder).free
        for block, records in self._source.recorded():
            writer.add(records)
            rows += len(block)
            # Later ones may be smaller: where it is a near thing, the disk decides.
            margin, needed = 1.1 if rows >= _LEAST_TOLD else 4, writer.num_bytes * self._shape[0]
            self._check_room(needed // rows, margin * free)
            if rows == len(block):
                cache.make_room(self._folder.parent, needed // rows)
            yield block
        writer.close()
        self._check_all(rows)

    def _check_room(self, needed: int, room: float) -> None:
        """Raise UserError where the disk is about to be filled in vain."""
        if needed > room:
            free = shutil.disk_usage(self._folder).free
            raise UserError(
                f"all images take about {needed >> 20:,} MiB as files, and {self._folder.parent} "
                f"has {free >> 20:,} MiB free; set CONR_RAY_CACHE to a folder with more"
            )

    def written(self) -> Rows:
        """The images."""
        return EncodedRows(self._folder, self._source.form)

    def facts(self) -> dict[str, Any]:
        """What images are brought to, and by what."""
        form = self._source.form
        told = {"mode": form.mode, "stored_size": form.stored_size, "shape": form.shape}
        return {"encoded": {**told, **decoder()}}


def num_bytes(shape: Sequence[int]) -> int:
    """What decoded samples of `shape` take, (n, c, h, w) or (n, d)."""
    return math.prod(shape) * (4 if len(shape) == 2 else 1)


def decoder() -> dict[str, str]:
    """What decodes images: another version may do it differently by a level or two."""
    return {"pillow": PIL.__version__}


def opened(folder: Path, meta: Mapping[str, Any], places: Sequence[str] | None) -> Rows:
    """The samples in a folder with these facts.

    Raises:
        Damaged: they are to be decoded, and were found out by another version of the decoder.
    """
    encoded = meta.get("encoded")
    if encoded is None:
        found: NDArray[Any] = np.load(folder / _rows_file(meta["shape"]), mmap_mode="r")
        return found
    if encoded["pillow"] != decoder()["pillow"]:
        raise Damaged(f"made by Pillow {encoded['pillow']}")
    form = Form(encoded["mode"], encoded["stored_size"], tuple(encoded["shape"]))
    return EncodedRows(folder, form, places)


def _rows_file(shape: Sequence[int]) -> str:
    return "vectors.npy" if len(shape) == 2 else "images.npy"


def _header(told: dict[str, Any]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue()
