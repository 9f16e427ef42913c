"""Objects that one process hands to another, of which arrays go through memory that both have."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any


def shared_file() -> int:
    """The descriptor of an empty file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("conr_ray")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedMemory:
    """One end of a memory that holds one object at a time.

    What `put` gives at one end is told to the other one, whose `taken` makes the object of it.
    """

    def __init__(self, file: int) -> None:
        """Of a file that both have; it is closed by `close`."""
        self._file = file
        self._map: mmap.mmap | None = None

    def put(self, value: object) -> tuple[bytes, list[int]]:
        """Write the arrays of an object; returns the pickle of the rest, and their sizes."""
        buffers: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        sizes = [part.nbytes for part in parts]
        memory, begin = self._of(sum(sizes)), 0
        for part, size in zip(parts, sizes, strict=True):
            memory[begin : begin + size] = part
            begin += size
        return rest, sizes

    def taken(self, rest: bytes, sizes: Sequence[int]) -> Any:
        """The object, whose arrays are copies."""
        memory, begin, parts = self._of(sum(sizes)), 0, []
        for size in sizes:
            parts.append(bytearray(memory[begin : begin + size]))
            begin += size
        return pickle.loads(rest, buffers=parts)

    def close(self) -> None:
        """Give the memory up."""
        self._map = None
        os.close(self._file)

    def _of(self, size: int) -> memoryview:
        """The memory, which grows to a size if it is smaller."""
        if self._map is None or len(self._map) < size:
            if os.fstat(self._file).st_size < size:
                os.truncate(self._file, size)
            self._map = mmap.mmap(self._file, size) if size else None
        return memoryview(self._map) if self._map is not None else memoryview(b"")
