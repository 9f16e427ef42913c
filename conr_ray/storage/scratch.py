"""Temporary folders of commands: those of a command that was killed are deleted by the next one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conr_ray.errors import StorageError
from conr_ray.storage.locks import FileLocks
from conr_ray.storage.private_folder import private_folder


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A new folder on this machine, which is deleted at the end.

    Raises:
        UserError: it cannot be made.
    """
    place = private_folder() / "scratch"
    locks = FileLocks(str(place))
    _delete_abandoned(place, locks)
    name = f"{purpose}-{os.getpid()}-{secrets.token_hex(4)}"
    # Held before there is a folder: one without a holder is nobody's.
    with locks(name) as lock:
        lock.acquired()
        folder = place / name
        try:
            folder.mkdir()
        except OSError as error:
            raise StorageError(f"{folder} cannot be made ({error.strerror}): make room") from None
        try:
            yield folder
        finally:
            _delete(folder)


def _delete_abandoned(place: Path, locks: FileLocks) -> None:
    # A lock outlives its folder where a command was killed between the two.
    for lock_file in place.glob("*.lock"):
        with locks(lock_file.stem) as lock, suppress(StorageError):
            if lock.acquired():
                _delete(place / lock_file.stem)


def _delete(folder: Path) -> None:
    """Delete a folder, and its lock, which must be held."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
