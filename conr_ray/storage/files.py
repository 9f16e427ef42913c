"""Folders, local or in a bucket, on any file system that pyarrow supports."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from conr_ray.errors import StorageError, UserError


class Folder:
    """The files under `uri`, a local path or a URI such as s3://bucket/folder.

    Names of files and folders are relative to it. A write is atomic: readers see the old file or
    the new one. It creates the folders that it needs.

    Attributes:
        uri: an absolute path, or a URI.
        is_local: whether the files are on a file system of this machine.

    Raises:
        StorageError: `uri` cannot be opened. The reading methods raise it too, if a read fails.
    """

    def __init__(self, uri: str | Path) -> None:
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

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        # Each process opens the files itself.
        return type(self), (self.uri,)

    @property
    def parent(self) -> Folder:
        """The folder that contains this one."""
        return Folder(self.uri.rpartition("/")[0])

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""
        try:
            with self._files.open_input_stream(f"{self._root}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.uri}/{name} cannot be read: {error}") from None

    def read_text(self, name: str) -> str | None:
        """The text of a file, or None if it does not exist."""
        data = self.read_bytes(name)
        return None if data is None else data.decode()

    def read_table(self, name: str) -> pa.Table | None:
        """The table in a Parquet file, or None if the file does not exist."""
        data = self.read_bytes(name)
        try:
            return None if data is None else pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.uri}/{name} is damaged ({error}): delete it") from None

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file."""
        path = f"{self._root}/{name}"
        if not self.is_local:
            # An object appears whole when its upload ends.
            with self._files.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(target)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.write_bytes(name, buffer.getbuffer())

    def has(self, name: str) -> bool:
        """Whether there is a file, or a folder with files in it, of this name."""
        info = self._files.get_file_info(f"{self._root}/{name}")
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
        self._files.delete_file(f"{self._root}/{name}")

    def delete_folder(self, name: str) -> None:
        """Delete a folder and its content, if it exists."""
        if self.has(name):
            self._files.delete_dir(f"{self._root}/{name}")

    def _list(self, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
        place = f"{self._root}/{folder}"
        selector = pafs.FileSelector(place, allow_not_found=True, recursive=recursive)
        return list(self._files.get_file_info(selector))
