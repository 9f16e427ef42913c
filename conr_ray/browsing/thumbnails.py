"""Small pictures, each made once and kept in one file, whatever the number of images.

thumbnails.bin   the files of pictures, one after another in the order in which they were made
thumbnails.npy   int64 (n, 2): where that of each sample begins, and how long it is; length 0 if it
                 has not been made, -1 if it cannot be made
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Made = Callable[[Sequence[int]], Mapping[int, bytes]]
"""From rows to the pictures of those that have one."""

_FAILED = -1


class Thumbnails:
    """The pictures of `num_rows` samples, in a folder; used by several threads at once."""

    def __init__(self, folder: Path, num_rows: int, made: Made) -> None:
        self._made = made
        self._lock = threading.Lock()
        self._data = os.open(folder / "thumbnails.bin", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        path = folder / "thumbnails.npy"
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", np.int64, (num_rows, 2)).flush()
        self._places_n2 = np.lib.format.open_memmap(path, "r+")

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._places_n2.flush()
            os.close(self._data)

    def get(self, row: int) -> bytes | None:
        """The picture of a sample, which is made if it is not there; None if it cannot be made."""
        self.prepare([row])
        start, length = self._places_n2[row].tolist()
        return None if length == _FAILED else os.pread(self._data, length, start)

    def prepare(self, rows: Sequence[int]) -> None:
        """Make those pictures that are not there, all at once."""
        if all(self._there(row) for row in rows):
            return
        with self._lock:
            missing = [row for row in dict.fromkeys(rows) if not self._there(row)]
            if not missing:
                return
            found = self._made(missing)
            for row in missing:
                data = found.get(row)
                if not data:
                    # Tried again by the next browser: a disk may be back by then.
                    self._places_n2[row] = (os.getpid(), _FAILED)
                    continue
                start = os.lseek(self._data, 0, os.SEEK_END)
                _write_all(self._data, data)
                self._places_n2[row] = (start, len(data))

    def _there(self, row: int) -> bool:
        start, length = self._places_n2[row].tolist()
        if length == _FAILED:
            return bool(start == os.getpid())
        if length <= 0:
            return False
        # Where the machine stopped, the places may have been written and the pictures not.
        head = os.pread(self._data, 4, start)
        return head[:2] == b"\xff\xd8" or head == b"\x89PNG"


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
