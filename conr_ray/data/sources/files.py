"""Locations of files, local or in object stores, and locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from conr_ray.errors import UserError, one_line
from conr_ray.storage.locks import locked_file


@dataclass(frozen=True)
class FoundFile:
    """A file below a folder: its path there, size and modification time.

    Bytes of the path that are no UTF-8 are lone surrogates, as Python writes them.
    """

    name: str
    size: int
    mtime_ns: int


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

    @property
    def uri(self) -> str:
        """The absolute path, or the URI without a user, a password and options."""
        return self.path if self.is_local else f"{self.text.partition('://')[0]}://{self.path}"

    def read(self, name: str) -> bytes:
        """The content of the file `name` below this folder."""
        if self.is_local:
            # Arrow takes no names but those in UTF-8.
            return Path(self.path, name).read_bytes()
        with self.filesystem.open_input_stream(f"{self.path.rstrip('/')}/{name}") as stream:
            return bytes(stream.read())

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of the file `name` below this folder, at most `size`."""
        if self.is_local:
            with Path(self.path, name).open("rb") as file:
                return file.read(size)
        with self.filesystem.open_input_file(f"{self.path.rstrip('/')}/{name}") as opened:
            return bytes(opened.read(size))

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


def locate(text: str) -> Location:
    """The place that `text` names: a local path, or a URI such as s3://bucket/file.parquet.

    Raises UserError if Arrow does not support this kind of URI.
    """
    if "://" not in text:
        # Path's own expanduser fails for a user that there is not.
        path = str(Path(os.path.expanduser(text)).absolute())
        return Location(text, fs.LocalFileSystem(), path)
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"data.path={text}: {one_line(error)}; name a local path or a URI that Arrow reads, "
            f"such as s3://bucket/file"
        ) from None
    return Location(text, filesystem, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes on the file `path`, created if missing.

    The kernel frees the lock when the process ends, however it ends.
    """
    file = locked_file(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(file)
