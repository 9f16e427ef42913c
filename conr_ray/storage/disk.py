"""Changes of local files that survive a kill, a full disk and a loss of power.

A file is whole or absent, old or new: it is written beside its place, synced, renamed, and its
folder is synced. Every change that a run, search, trunk or cache makes of a local file is made by
a function here, through `os`: a test that replaces this module's `os` makes each of them fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from conr_ray.errors import StorageError, printable

_T = TypeVar("_T")
_PART = ".part"
# Storage that is full or away is asked again after this long; later less often.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file, and the folders that it needs; an OSError leaves the old file, or none."""
    make_folders(path.parent)
    part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    try:
        with opened(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            write_all(file, data)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    sync_folder(path.parent)


def open_file(path: Path, flags: int) -> int:
    """A file descriptor, closed by programs that this one starts."""
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor, closed at the end and by programs that this one starts."""
    file = open_file(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def write_all(file: int, data: bytes | memoryview, *, synced: bool = True) -> None:
    """Write all of `data`, however little the system takes at a time, and sync it."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]
    if synced:
        os.fsync(file)


def truncate(file: int, size: int) -> None:
    """Cut a file off after `size` bytes."""
    os.ftruncate(file, size)
    os.fsync(file)


def touch(file: int) -> None:
    """Make now the time of a file's last change."""
    os.utime(file)


def sync_folder(path: Path) -> None:
    """Make renames, new files and deletions in a folder last."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        os.fsync(folder)


def make_folders(path: Path, mode: int = 0o777) -> None:
    """Make a folder, with a mode, and those above it, unless they are there."""
    if path.is_dir():
        return
    make_folders(path.parent)
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Delete a file; it must exist."""
    os.unlink(path)
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder with all in it: at once for who looks, whenever this is killed."""
    doomed = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    os.rename(path, doomed)
    sync_folder(path.parent)
    shutil.rmtree(doomed)


def remove_parts(folder: Path, *, deep: bool) -> None:
    """Delete what writes and deletions that were cut short have left in a folder.

    Nobody else may be writing there, nor, if `deep`, in the folders below it.
    """
    found = folder.rglob if deep else folder.glob
    for part in sorted(found(f"*.*{_PART}")):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def patiently(
    work: Callable[[], _T],
    what: str,
    away: tuple[type[Exception], ...] = (OSError, StorageError),
    say: Callable[[str], None] | None = None,
) -> _T:
    """Do something with files, again and again until storage that is full or away is back.

    Waiting loses nothing, and whoever frees space or mounts the folder again need do nothing else.
    One line on standard error says that it waits, one that it goes on.

    Args:
        work: raises one of `away`, and can then be done again.
        what: the file or folder, for the lines.
        away: errors that mean that the storage does not work.
        say: given the lines instead of standard error.
    """
    say = say or tell
    try:
        return work()
    except away as error:
        reason = getattr(error, "strerror", None) or error
        say(f"{what}: {reason}: waiting for the storage, or for Ctrl-C")
    pause_s = _FIRST_PAUSE_S
    with _ended_by_ctrl_c():
        while True:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            with suppress(*away):
                result = work()
                break
    say(f"{what}: the storage is back: going on")
    return result


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, whatever a library does at it while it works."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def tell(line: str) -> None:
    """Say a line to the user, whatever logging is set up to do."""
    print(printable(line), file=sys.stderr, flush=True)
