"""Named locks, released when their holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conr_ray.errors import StorageError
from conr_ray.storage import disk


class Lock(Protocol):
    """A context manager that releases the lock at its end."""

    def __enter__(self) -> Lock: ...
    def __exit__(self, *_: object) -> None: ...

    def acquired(self) -> bool:
        """Take the lock if it is free; returns whether this process holds it.

        Raises:
            StorageError: its file cannot be made.
        """


class Locks(Protocol):
    """Makes the lock of a name. Picklable; a name is the same lock in every process."""

    def __call__(self, name: str) -> Lock:
        """The lock of a name, which may be held elsewhere."""


@dataclass(frozen=True)
class FileLocks:
    """Locks shared by all processes that see a folder."""

    folder: str

    def __call__(self, name: str) -> Lock:
        """The lock of the file `name`.lock in the folder."""
        return _FileLock(Path(self.folder) / f"{name}.lock")


class _FileLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> _FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def acquired(self) -> bool:
        if self._file is None:
            try:
                disk.make_folders(self._path.parent)
                file = disk.open_file(self._path, os.O_CREAT | os.O_RDWR)
            except OSError as error:
                raise StorageError(
                    f"{self._path} cannot be locked ({error.strerror}): make room or restore the "
                    "storage, then resume"
                ) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._file = file
        return True


def locked_file(path: Path, how: int) -> int:
    """Open a file, made if it is missing, and lock it; its descriptor holds the lock.

    Args:
        path: of the file, which holders may remove.
        how: as of `fcntl.flock`.

    Raises:
        BlockingIOError: it is held, and `how` says not to wait.
        OSError: it cannot be made.
    """
    while True:
        file = disk.open_file(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, how)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
