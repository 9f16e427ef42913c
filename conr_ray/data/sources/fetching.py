"""Whole files of stores and web servers, brought to this machine while they are read."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import BinaryIO

from conr_ray.data.sources.files import Location
from conr_ray.errors import StorageError, UserError
from conr_ray.storage.patience import WAITS_S, is_final


def opened_here(location: Location) -> BinaryIO:
    """A file to read at any place; one from elsewhere is copied, and the copy has no name.

    So nothing is left of it, however this process ends. It goes on where a connection was lost.

    Raises:
        OSError: it cannot be read.
        UserError: there is no room for the copy.
    """
    if location.is_local:
        return open(location.path, "rb")
    _check_room(location)
    file = temporary()
    failures, arrived = 0, 0
    while True:
        try:
            for chunk in location.chunks(file.tell()):
                file.write(chunk)
            file.seek(0)
            return file
        except (StorageError, FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            failures = 0 if file.tell() > arrived else failures
            arrived = file.tell()
            if failures == len(WAITS_S) or is_final(str(error)) or _is_full():
                raise
            time.sleep(WAITS_S[failures])
            failures += 1


def temporary() -> BinaryIO:
    """A file that has no name, and is gone when it is closed."""
    return tempfile.TemporaryFile(prefix="conr_ray-")


def _check_room(location: Location) -> None:
    size, free = location.file().size, shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise UserError(
            f"data.path={location.text}: {location.path} has {size >> 20:,} MiB, and "
            f"{tempfile.gettempdir()} has {free >> 20:,} MiB free; set TMPDIR to a folder with more"
        )


def _is_full() -> bool:
    found = os.statvfs(tempfile.gettempdir())
    return found.f_bavail == 0
