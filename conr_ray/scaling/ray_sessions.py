"""What Ray leaves of sessions that have ended: sockets, temporary files, logs that nobody needs."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import ray

# Sessions whose logs are kept, to look up why the last ones have failed.
_KEPT = 5


def new_temporary_folder(folder: Path) -> Path:
    """A folder in Ray's for the temporary files of all processes that this one has Ray start."""
    temporary = folder / f"temporary_{os.getpid()}"
    temporary.mkdir(parents=True, exist_ok=True)
    return temporary


def tidy_sessions(folder: Path) -> None:
    """Delete sockets and temporary files of sessions in Ray's folder that have ended.

    Of old ones everything is deleted. Ray itself never deletes any.
    """
    sessions = sorted(path for path in folder.glob("session_2*") if not path.is_symlink())
    ended = [session for session in sessions if _has_ended(session)]
    for session in ended:
        shutil.rmtree(session / "sockets", ignore_errors=True)
    at_work = {_driver(session) for session in sessions if session not in ended}
    for temporary in folder.glob("temporary_*"):
        driver = _driver(temporary)
        if driver is not None and driver not in at_work and not _lives(driver):
            shutil.rmtree(temporary, ignore_errors=True)
    for session in ended[:-_KEPT]:
        shutil.rmtree(session, ignore_errors=True)


def _has_ended(session: Path) -> bool:
    """Whether the session's driver is gone, and nobody answers there."""
    driver = _driver(session)
    if driver is None or _lives(driver):
        return False
    # Processes in another container have other ids.
    return driver == os.getpid() or not any(map(_answers, (session / "sockets").glob("*")))


def _driver(path: Path) -> int | None:
    """The id of a process that ends the name of a session or temporary folder."""
    number = path.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else None


def _lives(driver: int) -> bool:
    """Whether a driver lives; of this process, whether its Ray does."""
    if driver == os.getpid():
        return ray.is_initialized()
    with suppress(ProcessLookupError, PermissionError):
        os.kill(driver, 0)
        return True
    return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
