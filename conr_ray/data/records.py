"""What images are decoded from when they are needed: records, one after another in a file.

A record is the bytes of an image's file, or its pixels where these are less or there is no file, or
the path of a file on this machine, which is not copied.

Files of a folder: records.bin, and index.npy, which has for each image the kind of its record,
where that ends, and the checksum of what the image is decoded from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

RECORDS = "records.bin"
INDEX = "index.npy"
_INDEX_TYPE = np.dtype([("end", "<i8"), ("crc32", "<u4"), ("kind", "u1")])


class Kind(IntEnum):
    """What the bytes of a record are; numbers are in files."""

    FILE = 0
    PIXELS = 1
    PATH = 2


class Record(NamedTuple):
    """What an image is decoded from, and its checksum; of a file elsewhere, that of its bytes."""

    kind: Kind
    content: bytes
    crc32: int

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8], file: bytes | None = None, path: bytes | None = None
    ) -> Record:
        """The record of an image.

        Args:
            pixels: what it is decoded to, (c, h, w).
            file: the bytes that it is decoded from, if there are any.
            path: where these are a file on this machine.
        """
        if file is not None and path is not None:
            return cls(Kind.PATH, path, crc32(file))
        if file is not None and len(file) < pixels.nbytes:
            return cls(Kind.FILE, file, crc32(file))
        content = pixels.tobytes()
        return cls(Kind.PIXELS, content, crc32(content))


class RecordWriter:
    """Writes the records of a folder; `close` completes it."""

    def __init__(self, folder: Path) -> None:
        """Begin anew."""
        self._folder = folder
        self._file: BinaryIO = (folder / RECORDS).open("wb")
        self._parts: list[NDArray[np.void]] = []
        self.num_bytes = 0

    def add(self, records: Sequence[Record]) -> None:
        """Write the records of the next images."""
        part = np.empty(len(records), _INDEX_TYPE)
        for row, (kind, content, checksum) in enumerate(records):
            self._file.write(content)
            self.num_bytes += len(content)
            part[row] = self.num_bytes, checksum, kind
        self._parts.append(part)

    def close(self) -> None:
        """Write the index."""
        self._file.close()
        index = np.concatenate(self._parts) if self._parts else np.empty(0, _INDEX_TYPE)
        np.save(self._folder / INDEX, index)


class StoredRecord(NamedTuple):
    """A record in a file: its kind, where it begins, how long it is, and its checksum."""

    kind: int
    begin: int
    size: int
    crc32: int


class RecordReader:
    """The records of a folder, which any number of threads may read."""

    def __init__(self, folder: Path) -> None:
        """Open the files."""
        self._index = np.load(folder / INDEX, mmap_mode="r")
        self._file = (folder / RECORDS).open("rb", buffering=0)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._index)

    def stored(self, rows: NDArray[np.int64]) -> list[StoredRecord]:
        """Where the records of some images are."""
        ends = self._index["end"]
        begins = np.where(rows > 0, ends[rows - 1], 0)
        found = self._index[rows]
        sizes = found["end"] - begins
        columns = found["kind"], begins, sizes, found["crc32"]
        return [StoredRecord(*one) for one in zip(*(x.tolist() for x in columns), strict=True)]

    def content(self, record: StoredRecord) -> bytes:
        """What an image is decoded from.

        Raises:
            OSError: it cannot be read.
            Changed: it is not what it was.
        """
        content = os.pread(self._file.fileno(), record.size, record.begin)
        if record.kind == Kind.PATH:
            content = Path(os.fsdecode(content)).read_bytes()
        if crc32(content) != record.crc32:
            raise Changed("it has changed")
        return content


class Changed(Exception):
    """What an image is decoded from is not what it was when the record was made."""
