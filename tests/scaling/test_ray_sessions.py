"""Ray's folders of sessions that have ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conr_ray.scaling.ray_sessions import tidy_sessions


def made(folder: Path, second: int, pid: int) -> Path:
    session = folder / f"session_2026-01-01_00-00-{second:02d}_000000_{pid}"
    (session / "sockets").mkdir(parents=True)
    (session / "logs").mkdir()
    (session / "sockets" / "raylet").touch()
    return session


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have paths that the system takes."""
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        yield Path(folder)


def test_sessions_that_have_ended_leave_a_few_logs(short_path: Path) -> None:
    # One of a process that lives, one that answers though its driver is not seen, eight ended.
    unseen, gone = ended_process(), ended_process()
    alive = made(short_path, 0, os.getppid())
    answers = made(short_path, 1, unseen)
    (answers / "sockets" / "raylet").unlink()
    ended = [made(short_path, second, gone) for second in range(2, 10)]
    temporary = [short_path / f"temporary_{pid}" for pid in (os.getppid(), unseen, gone)]
    for folder in temporary:
        (folder / "pymp-0").mkdir(parents=True)
    (short_path / "session_latest").symlink_to(ended[-1])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(answers / "sockets" / "raylet"))
        server.listen()
        tidy_sessions(short_path)
    assert (alive / "sockets" / "raylet").exists() and (answers / "sockets" / "raylet").exists()
    assert [session.exists() for session in ended] == [False] * 3 + [True] * 5
    assert all((session / "logs").exists() for session in ended[3:])
    assert not any((session / "sockets").exists() for session in ended)
    assert [folder.exists() for folder in temporary] == [True, True, False]
