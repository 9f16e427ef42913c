"""Locations of files, local or in object stores, and locks between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from conr_ray.errors import UserError


@dataclass(frozen=True)
class Location:
    """A file or folder: `path` in the Arrow file system `filesystem`, `text` as the user wrote it.

    `identity` is the same for every way of writing the same local path.
    """

    text: str
    filesystem: Any
    path: str

    @property
    def identity(self) -> str:
        """Kind of file system and path."""
        return f"{self.filesystem.type_name}:{self.path}"


def locate(text: str) -> Location:
    """The place that `text` names: a local path, or a URI such as s3://bucket/file.parquet.

    Raises UserError if Arrow does not support this kind of URI.
    """
    if "://" not in text:
        return Location(text, fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"data.path={text}: {one_line(error)}; name a local path or a URI that Arrow reads, "
            f"such as s3://bucket/file"
        ) from None
    return Location(text, filesystem, path)


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, or its type if it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes on the file `path`, created if missing.

    The kernel frees the lock when the process ends, however it ends. The file stays: removing it
    would let one process lock the removed file and another a new one.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
