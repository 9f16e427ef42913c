"""Locations of files, local or in object stores, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from conr_ray.data.decoding import MOST_BYTES
from conr_ray.errors import StorageError, UserError, one_line
from conr_ray.storage.locks import locked_file
from conr_ray.storage.patience import patient, remedy_of

WEB = frozenset({"http", "https"})
_OF_ARROW = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs"})
# All that may be in a URI, and the signs of patterns.
_AS_WRITTEN = "/:?#[]@!$&'()*+,;=%~"
_CHUNK = 2**22
_MOST_CHANCES = 3
P = ParamSpec("P")
T = TypeVar("T")
# Of what a store says of a request whose answer has no body: a listing tells more.
_SAYS_LITTLE = "No response body"
# What could be listed: then the credentials are not to blame.
_listed: set[str] = set()


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

    def kind(self) -> fs.FileType:
        """Whether it is a file, a folder or nothing; raises OSError if that cannot be found."""
        asked = self._reached(patient(self.filesystem.get_file_info, self.is_local))
        return asked(self.path.rstrip("/") or "/").type

    def below(self, path: str) -> Location:
        """The place with another path in the same file system."""
        return replace(self, path=path)

    def path_of(self, name: str) -> str:
        """The path of the file `name` below this folder; that of this file for an empty one."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def text_of(self, name: str) -> str:
        """What to write for the file `name` below this folder; for this file, an empty one."""
        return f"{self.text.rstrip('/')}/{name}" if name else self.text

    def file(self) -> FoundFile:
        """The size and modification time of this file, with an empty name."""
        info = self._reached(patient(self.filesystem.get_file_info, self.is_local))(self.path)
        return FoundFile("", info.size or 0, info.mtime_ns or 0)

    def files_below(self, folder: str = "") -> list[FoundFile]:
        """All files below a sub-folder, however deep; none if it is not there."""
        selector = fs.FileSelector(
            self.path_of(folder).rstrip("/") or "/", recursive=True, allow_not_found=True
        )
        infos = self._reached(patient(self.filesystem.get_file_info, self.is_local))(selector)
        begin = len(self.path.rstrip("/")) + 1
        return [
            FoundFile(info.path[begin:], info.size or 0, info.mtime_ns or 0)
            for info in infos
            if info.type == fs.FileType.File
        ]

    def read(self, name: str, size: int = 0) -> bytes:
        """The content of the file `name` below this folder, or of this file.

        Args:
            name: empty for this file.
            size: the bytes that it should have, where that is known.

        Raises:
            OSError: it cannot be read, or less has arrived; a store is asked a few times.
            ValueError: it is larger than any picture.
            StorageError: the store refuses whatever it is asked.
        """
        if self.is_local:
            # Arrow takes no names but those in UTF-8.
            path = self.path_of(name)
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no file")
            _check_size(status.st_size)
            return _content(path, status.st_size)
        return self._reached(patient(self._read, is_local=False))(name, size)

    def _read(self, name: str, size: int) -> bytes:
        with self.filesystem.open_input_file(self.path_of(name)) as file:
            _check_size(file.size())
            return whole(_part(file, 0, file.size()), size)

    def chunks(self, start: int) -> Iterator[bytes]:
        """What is in this file from a byte on, piece by piece; a store is asked once."""
        with self._reached(self.filesystem.open_input_file)(self.path) as file:
            size = file.size()
            for place in range(start, size, _CHUNK):
                yield _part(file, place, min(_CHUNK, size - place))

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of the file `name` below this folder, at most `size`."""
        if self.is_local:
            with Path(self.path_of(name)).open("rb") as file:
                return file.read(size)
        return self._reached(patient(self._head, is_local=False))(name, size)

    def _head(self, name: str, size: int) -> bytes:
        with self.filesystem.open_input_file(self.path_of(name)) as opened:
            return _part(opened, 0, min(size, opened.size()))

    def _reached(self, call: Callable[P, T]) -> Callable[P, T]:
        """`call`, which raises StorageError where the store refuses its user."""
        if self.is_local:
            return call

        @wraps(call)
        def told(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return call(*args, **kwargs)
            except FileNotFoundError:
                raise
            except OSError as error:
                reason = self._more_of(one_line(error))
                if remedy := remedy_of(reason):
                    raise StorageError(
                        f"data.path={self.text}: the store refuses ({reason}); {remedy}"
                    ) from None
                raise

        return told

    def _more_of(self, reason: str) -> str:
        bucket = self.path.partition("/")[0]
        if _SAYS_LITTLE in reason and bucket not in _listed:
            try:
                self.filesystem.get_file_info(fs.FileSelector(bucket))
            except OSError as error:
                return one_line(error)
            _listed.add(bucket)
        return reason

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


def _content(path: str, size: int) -> bytes:
    """A file that had this size a moment ago; a third of the system calls of Python's own way."""
    file, found = os.open(path, os.O_RDONLY), b""
    try:
        while part := os.read(file, max(size - len(found), 4096)):
            found = found + part if found else part
    finally:
        os.close(file)
    return found


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")


def _part(file: Any, start: int, size: int) -> bytes:
    """So many bytes of an open Arrow file.

    Of an S3 object whose answer is shorter than its length, Arrow hands over whatever was in memory
    as the rest: the last byte then stays as it was.

    Raises:
        OSError: less has arrived.
    """
    for _ in range(_MOST_CHANCES):
        buffer = bytearray(size)
        mark = buffer[-1:] = secrets.token_bytes(min(1, size))
        file.seek(start)
        place, view = 0, memoryview(buffer)
        while place < size and (count := file.readinto(view[place:])):
            place += count
        if place < size:
            raise OSError(f"{place:,} of {size:,} bytes have arrived")
        # By chance it may have been the same byte.
        if not size or buffer[-1:] != mark:
            return bytes(buffer)
    raise OSError("its end has not arrived")


def whole(data: bytes, size: int) -> bytes:
    """`data`, if it has the `size` that it should have, where that is known.

    Of an answer that was cut short a store's library need not notice it.
    """
    if len(data) < size:
        raise OSError(f"{len(data):,} of {size:,} bytes have arrived")
    return data


def locate(text: str) -> Location:
    """The place that `text` names: a local path, or a URI such as s3://bucket/file.parquet.

    Arrow's file systems come first, then those of fsspec. Nothing is asked of a web server yet.

    Raises UserError if neither supports this kind of URI.
    """
    if "://" not in text:
        # Path's own expanduser fails for a user that there is not.
        path = str(Path(os.path.expanduser(text)).absolute())
        return Location(text, fs.LocalFileSystem(), path)
    scheme = text.partition("://")[0].lower()
    if scheme in WEB:
        from conr_ray.data.sources.web import web_location

        return web_location(text)
    try:
        # Arrow takes no spaces and the like.
        filesystem, path = fs.FileSystem.from_uri(quote(text, safe=_AS_WRITTEN))
    except (pa.ArrowException, OSError, ValueError) as error:
        return _by_fsspec(text, scheme, one_line(error))
    return Location(text, filesystem, path)


def _by_fsspec(text: str, scheme: str, reason: str) -> Location:
    """A place that Arrow does not know."""
    import fsspec

    remedy = "name a local path, or a URI that Arrow or fsspec reads, such as s3://bucket/file"
    if scheme not in _OF_ARROW:
        try:
            filesystem, path = fsspec.core.url_to_fs(text)
            return Location(text, fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path)
        except ImportError as error:
            reason, remedy = f"{scheme}:// is read by another package", one_line(error)
        # Each of its file systems raises errors of its own.
        except Exception as error:
            reason = one_line(error)
    raise UserError(f"data.path={text}: {reason}; {remedy}") from None


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
