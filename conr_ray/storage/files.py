"""Folders, local or in a bucket, on any file system that pyarrow supports."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk

# Tells a local folder from another one that is later found in its place.
_IDENTITY = ".folder-id"
# An object that is replaced while it is read is read again, so often.
_MOST_READS = 20


class Folder:
    """The files under `uri`, a local path or a URI such as s3://bucket/folder.

    Names of files and folders are relative to it. A write is atomic and lasts: readers see the old
    file or the new one. It creates the folders that it needs. A local folder that has an identity
    when it is opened is written to only while it is there with the same one: what is under the
    mount point of a folder that is unmounted, or made anew where one was removed, is another.

    Attributes:
        uri: an absolute path, or a URI.
        is_local: whether the files are on a file system of this machine.
        outer: a folder around this one that has to be there too.

    Raises:
        StorageError: `uri` cannot be opened. All methods raise it, if a read or write fails.
    """

    def __init__(self, uri: str | Path, outer: Folder | None = None) -> None:
        self.uri = str(uri)
        if "://" not in self.uri:
            self.uri = Path(self.uri).absolute().as_posix()
            self._files, self._root = pafs.LocalFileSystem(), self.uri
        else:
            try:
                self._files, root = pafs.FileSystem.from_uri(self.uri)
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"{self.uri} cannot be opened: {error}") from None
            self._root = root.rstrip("/")
        self.is_local = isinstance(self._files, pafs.LocalFileSystem)
        self.outer = outer
        self._identity: str | None = None
        # What cannot be read, such as a file in the folder's place, is told when it is used.
        with suppress(UserError):
            self._identity = self._found_identity()

    def __reduce__(self) -> tuple[Any, ...]:
        # Each process opens the files itself.
        return _reopened, (type(self), self.uri, self.outer, self._identity)

    @property
    def parent(self) -> Folder:
        """The folder that contains this one."""
        return Folder(self.uri.rpartition("/")[0])

    def keep(self) -> None:
        """Make the folder, unless it is there, and give it an identity, unless it has one.

        Raises:
            StorageError: it cannot be written, or another folder is in its place.
        """
        if self.is_local and self._identity is None:
            self.write_text(_IDENTITY, secrets.token_hex(16))
            self._identity = self._found_identity()
        self.check_identity()

    def check_identity(self) -> None:
        """Raise StorageError unless the folder is the one that was opened."""
        if self.outer is not None:
            self.outer.check_identity()
        if self._identity is not None and self._found_identity() != self._identity:
            raise StorageError(
                f"{self.uri} is gone, or another folder is in its place: mount or restore it, then "
                "resume"
            )

    def _found_identity(self) -> str | None:
        is_folder = self.is_local and Path(self._root).is_dir()
        return self.read_text(_IDENTITY) if is_folder else None

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""
        path = f"{self._root}/{name}"
        try:
            for _ in range(_MOST_READS):
                with self._files.open_input_stream(path) as stream:
                    data, read = bytes(stream.read()), stream.metadata()
                if self.is_local:
                    return data
                # Of an object that is replaced meanwhile, the length is the old one's.
                with self._files.open_input_stream(path) as stream:
                    if stream.metadata() == read:
                        return data
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.uri}/{name} cannot be read: {error}") from None
        raise StorageError(f"{self.uri}/{name} cannot be read: it changes all the time")

    def read_text(self, name: str) -> str | None:
        """The text of a file, or None if it does not exist.

        Raises:
            UserError: it is not text.
        """
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode()
        except ValueError as error:
            raise self._damaged(name, error) from None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None if the file does not exist.

        Raises:
            UserError: it holds something else.
        """
        text = self.read_text(name)
        try:
            return None if text is None else dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(name, error) from None

    def read_table(self, name: str, columns: Collection[str] = ()) -> pa.Table | None:
        """The table in a Parquet file, or None if the file does not exist.

        Args:
            name: of the file.
            columns: that the table needs to have.

        Raises:
            UserError: it holds something else.
        """
        data = self.read_bytes(name)
        try:
            if data is None:
                return None
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
            if missing := [column for column in columns if column not in table.column_names]:
                raise ValueError(f"no column {missing[0]}")
        # Arrow raises errors of many kinds, and an OSError where lengths in the file are wrong.
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(name, error) from None
        return table

    def _damaged(self, name: str, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        return UserError(f"{self.uri}/{name} is damaged ({reason}): delete it")

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file."""
        with self._changing(name) as path:
            if self.is_local:
                disk.write_file(Path(path), data)
            else:
                # An object appears whole when its upload ends.
                with self._files.open_output_stream(path) as stream:
                    stream.write(data)

    @contextmanager
    def _changing(self, name: str) -> Iterator[str]:
        """The path of a file or folder to be written or deleted; its errors are StorageErrors."""
        self.check_identity()
        try:
            yield f"{self._root}/{name}"
        except OSError as error:
            # Arrow's errors have no such text, and long ones of their own.
            reason = error.strerror or " ".join(str(error).split())
            raise StorageError(
                f"{self.uri}/{name} cannot be written ({reason}): make room or restore the "
                "storage, then resume"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        self.write_bytes(name, buffer.getvalue())

    def has(self, name: str) -> bool:
        """Whether there is a file, or a folder with files in it, of this name."""
        info: pafs.FileInfo = self._asked(f"{self._root}/{name}")
        return bool(info.type != pafs.FileType.NotFound)

    def file_names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder; empty if there is no such folder."""
        found = self._list(folder)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.File)

    def folder_names(self, folder: str) -> list[str]:
        """Sorted names of the folders in a folder; empty if there is no such folder."""
        found = self._list(folder)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def paths_below(self, folder: str) -> list[str]:
        """Sorted paths, relative to a folder, of all files in it and its subfolders."""
        found = self._list(folder, recursive=True)
        files = (info.path for info in found if info.type == pafs.FileType.File)
        # Whether a path begins with / depends on the file system.
        begin = f"{self._root}/{folder}/".lstrip("/")
        return sorted(path.lstrip("/").removeprefix(begin) for path in files)

    def delete_file(self, name: str) -> None:
        """Delete a file; it must exist."""
        with self._changing(name) as path:
            if self.is_local:
                disk.remove_file(Path(path))
            else:
                self._files.delete_file(path)

    def delete_folder(self, name: str) -> None:
        """Delete a folder and its content, if it exists."""
        if not self.has(name):
            return
        with self._changing(name) as path:
            if self.is_local:
                disk.remove_folder(Path(path))
            else:
                self._files.delete_dir(path)

    def remove_parts(self, *, deep: bool) -> None:
        """Delete what was left by writes and deletions that were cut short.

        Nobody else may be writing to the folder, nor, if `deep`, to the folders in it.
        """
        if self.is_local:
            with self._changing("") as path:
                disk.remove_parts(Path(path), deep=deep)

    def _list(self, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
        place = f"{self._root}/{folder}"
        selector = pafs.FileSelector(place, allow_not_found=True, recursive=recursive)
        return list(self._asked(selector))

    def _asked(self, what: str | pafs.FileSelector) -> Any:
        """Information on a path, or on what is in a folder."""
        try:
            return self._files.get_file_info(what)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise StorageError(f"{self.uri} cannot be read: {reason}") from None


def _reopened(kind: type[Folder], uri: str, outer: Folder | None, identity: str | None) -> Folder:
    folder = kind(uri, outer)
    folder._identity = identity
    return folder
