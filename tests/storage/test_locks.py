"""Locks on files, and temporary folders, which a lock keeps."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conr_ray.errors import StorageError
from conr_ray.storage import disk
from conr_ray.storage.locks import FileLocks
from conr_ray.storage.private_folder import private_folder
from conr_ray.storage.scratch import scratch_folder
from tests.storage.faulty import FaultyDisk, failing_by

HOLDER = """
import sys
from conr_ray.storage.scratch import scratch_folder
with scratch_folder("killed") as folder:
    (folder / "file").write_text("something")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_lock_whose_file_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "os", FaultyDisk(1, failing_by(errno.EROFS)))
    with pytest.raises(StorageError, match=r"a\.lock cannot be locked \(Read-only file system\)"):
        FileLocks(str(tmp_path))("a").acquired()


def test_a_temporary_folder_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch_folder("one") as one, scratch_folder("two") as two:
        (two / "file").write_text("something")
        assert one.is_dir() and one.parent == two.parent == private_folder() / "scratch"
    assert list(one.parent.iterdir()) == []


def test_the_temporary_folder_of_a_killed_process_is_deleted_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    with scratch_folder("beside"):
        assert (folder / "file").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with scratch_folder("after"):
        assert not folder.exists()
    assert list(folder.parent.iterdir()) == []
