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
    """Stands for `os`: counts operations, and has number `fails_at` (from 1) fail by `fault`."""

    def __init__(
        self, fails_at: int = 0, fault: Callable[[FaultyDisk], None] | None = None
    ) -> None:
        self.count = 0
        self.fails_at = fails_at
        self.fault = fault
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.dead:
                raise Killed
            if self.count == self.fails_at and self.fault is not None:
                if name == "write":
                    # A part arrives before the fault.
                    real(args[0], args[1][: len(args[1]) // 2])
                self.fault(self)
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


def gone(folder: Path) -> Callable[[FaultyDisk], None]:
    """The folder is moved away: `folder.away` is it until it is put back."""

    def move(_: FaultyDisk) -> None:
        folder.rename(folder.with_suffix(".away"))
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    return move
