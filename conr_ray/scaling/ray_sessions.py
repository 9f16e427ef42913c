"""What Ray leaves of sessions that have ended: their sockets, and logs that nobody needs."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import ray

# Sessions whose logs are kept, to look up why the last ones have failed.
_KEPT = 5


def tidy_sessions(folder: Path) -> None:
    """Delete the sockets of sessions in Ray's temporary folder that have ended, and old ones whole.

    Ray itself never deletes any.
    """
    sessions = [path for path in folder.glob("session_2*") if not path.is_symlink()]
    ended = sorted(filter(_has_ended, sessions))
    for session in ended:
        shutil.rmtree(session / "sockets", ignore_errors=True)
    for session in ended[:-_KEPT]:
        shutil.rmtree(session, ignore_errors=True)


def _has_ended(session: Path) -> bool:
    """Whether the session's driver, whose id ends its name, is gone, and nobody answers there."""
    number = session.name.rpartition("_")[2]
    if not number.isdecimal():
        return False
    if int(number) == os.getpid():
        return not ray.is_initialized()
    with suppress(ProcessLookupError, PermissionError):
        os.kill(int(number), 0)
        return False
    # Processes in another container have other ids.
    return not any(map(_answers, (session / "sockets").glob("*")))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
