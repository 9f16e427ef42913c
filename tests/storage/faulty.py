"""A disk on which a chosen operation fails, as seen by `conr_ray.storage.disk`."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What changes a disk, or makes a change last.
OPERATIONS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate")


class Killed(BaseException):
    """The process is gone: nothing that it does afterwards has an effect."""


class FaultyDisk:
    """Stands for `os`: counts operations; `lasts` of them fail by `fault`, from number `fails_at`.

    Operations are counted from 1. Of a write that fails, a part arrives.
    """

    def __init__(
        self,
        fails_at: int = 0,
        fault: Callable[[FaultyDisk], None] | None = None,
        lasts: int = 1,
    ) -> None:
        self.count = 0
        self.dead = False
        # What the operations that failed were about: paths and descriptors.
        self.failed: list[Any] = []
        self._failing = range(fails_at, fails_at + lasts) if fault is not None else range(0)
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.dead:
                raise Killed
            if self.count not in self._failing:
                return self._watched(name, real(*args, **options), args)
            assert self._fault is not None
            self.failed.append(args[0])
            if name == "write":
                written = real(args[0], args[1][: len(args[1]) // 2])
                self._fault(self)
                return written
            self._fault(self)
            return self._watched(name, real(*args, **options), args)

        return call

    @property
    def healthy(self) -> FaultyDisk:
        """The same disk, for a process whose operations do not fail."""
        return FaultyDisk(fault=self._fault)

    def _watched(self, name: str, result: Any, args: tuple[Any, ...]) -> Any:
        if isinstance(self._fault, PowerLoss):
            self._fault.saw(name, result, args)
        return result


def failing_by(code: int) -> Callable[[FaultyDisk], None]:
    """A fault that is an error of the system."""

    def fail(_: FaultyDisk) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def killed(disk: FaultyDisk) -> None:
    """The process is killed."""
    disk.dead = True
    raise Killed


class PowerLoss:
    """The machine loses power: of a folder, what was not synced is gone when it is back.

    That is the most that a disk may lose. A file whose folder was synced, but not itself, is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # By inode: content of files, and names and inodes in folders, when they were synced.
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}

    def __call__(self, disk: FaultyDisk) -> None:
        killed(disk)

    def saw(self, name: str, result: Any, args: tuple[Any, ...]) -> None:
        """Note what lasts after an operation that went well."""
        # The inode of what is new may have been another file's.
        if name == "open" and args[1] & os.O_CREAT and not os.fstat(result).st_size:
            self._files[os.fstat(result).st_ino] = b""
            self._folders.pop(os.fstat(result).st_ino, None)
        elif name == "mkdir":
            self._folders[Path(args[0]).stat().st_ino] = {}
        elif name == "fsync":
            path = Path(f"/proc/self/fd/{args[0]}").resolve()
            number = path.stat().st_ino
            if path.is_dir():
                self._folders[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
            else:
                self._files[number] = path.read_bytes()

    def restore(self) -> set[Path]:
        """Have the folder be what lasted; the folders in it whose files are others than before.

        Left out are files that were being written, and the journal's list of checksums, which is
        not synced.
        """
        before = self._content()
        parent = self._folder.parent
        place = self._folders.get(parent.stat().st_ino, {}) if parent.exists() else {}
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._folder.name in place:
            self._rebuild(self._folder, place[self._folder.name])
        changed = before.items() ^ self._content().items()
        return {path.parent for path, _ in changed if not path.match("*.sums")}

    def _content(self) -> dict[Path, bytes]:
        paths = (path.relative_to(self._folder) for path in self._folder.rglob("*"))
        whole = [path for path in paths if ".part" not in str(path)]
        files = ((path, self._folder / path) for path in whole)
        return {path: file.read_bytes() for path, file in files if file.is_file()}

    def _rebuild(self, path: Path, number: int) -> None:
        if number not in self._folders:
            path.write_bytes(self._files.get(number, b""))
            return
        path.mkdir()
        for name, inside in self._folders[number].items():
            self._rebuild(path / name, inside)


def written_in_part(_: FaultyDisk) -> None:
    """A write says that it took only a part; nothing else fails."""


def gone(folder: Path) -> Callable[[FaultyDisk], None]:
    """The folder is moved away: `folder.away` is it until it is put back."""

    def move(_: FaultyDisk) -> None:
        folder.rename(away(folder))
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    return move


def away(folder: Path) -> Path:
    """Where a folder that is gone lies."""
    return folder.with_suffix(".away")


# The fault at one operation on a folder, by what a user would call it.
FAULTS: dict[str, Callable[[Path], Callable[[FaultyDisk], None]]] = {
    "no space": lambda _: failing_by(errno.ENOSPC),
    "error": lambda _: failing_by(errno.EIO),
    "read-only": lambda _: failing_by(errno.EROFS),
    "killed": lambda _: killed,
    "power lost": PowerLoss,
    "gone": gone,
    "written in part": lambda _: written_in_part,
}
