"""A disk on which a chosen operation fails, as seen by `conr_ray.storage.disk`."""

from __future__ import annotations

import errno
import os
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
                return real(*args, **options)
            assert self._fault is not None
            if name == "write":
                written = real(args[0], args[1][: len(args[1]) // 2])
                self._fault(self)
                return written
            self._fault(self)
            return real(*args, **options)

        return call


def failing_by(code: int) -> Callable[[FaultyDisk], None]:
    """A fault that is an error of the system."""

    def fail(_: FaultyDisk) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def killed(disk: FaultyDisk) -> None:
    """The process is killed."""
    disk.dead = True
    raise Killed


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
    "gone": gone,
    "written in part": lambda _: written_in_part,
}
