"""Decoding on all cores.

Of the time that small pictures take, most is Python's own, which uses one core however many threads
there are. So what takes longer than a moment is decoded by other processes, one for each core; this
one reads the files, as many at a time as it has threads. Pixels come back in shared memory.

Shapes: b pictures of a task, c channels, h and w pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
from PIL import Image

from conr_ray.cores import usable_cores
from conr_ray.data.decoding import (
    Form,
    UInt8Array,
    file_of,
    open_encoded,
    reason_of,
    to_array,
)
from conr_ray.data.shared_memory import SharedMemory, shared_file
from conr_ray.errors import StorageError

Opened = Callable[[], Image.Image]
"""Opens a picture, or raises an Exception of any kind."""

# What is decoded by then needs no other processes: to start them takes about as long.
_ALONE_S = 0.25
# Of files, in memory for each thread.
_MOST_READ = 8 * 2**20
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from conr_ray.data.decoders import serve; serve()"
)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Encoded:
    """What opens the picture in the bytes of a file; another process can decode these."""

    read: Callable[[], bytes]

    def __call__(self) -> Image.Image:
        """The picture."""
        return open_encoded(self.read())


class Decoded(NamedTuple):
    """Pictures of a task, uint8 (b, c, h, w), without those that cannot be read.

    `broken` has the places of these in the task, and why. `differs` tells that one is of another
    size than the form's; then the rest may be missing. `files` are what the pictures were decoded
    from, if these are kept; None for those of no file.
    """

    images: UInt8Array
    broken: list[tuple[int, str]]
    differs: bool = False
    files: Sequence[bytes | None] = ()


def opened(one: bytes | Opened) -> Image.Image:
    """The picture in the bytes of a file, or what another source opens."""
    return open_encoded(one) if isinstance(one, bytes) else one()


def decode(task: Sequence[bytes | Opened], form: Form, *, keeps: bool = False) -> Decoded:
    """Decode the pictures of a task; `keeps` hands back their files."""
    images = np.empty((len(task), *form.shape), np.uint8)
    broken: list[tuple[int, str]] = []
    files: list[bytes | None] = []
    _, height, width = form.shape
    for place, one in enumerate(task):
        try:
            picture = opened(one)
            file = file_of(picture) if keeps else None
            image = form.fitted(picture)
        # A store that is away is no broken picture.
        except StorageError:
            raise
        # Decoders raise many kinds of errors on broken bytes: OSError, SyntaxError, struct.error.
        except Exception as error:
            broken.append((place, reason_of(error)))
            continue
        if image.size != (width, height):
            return Decoded(images[:0], broken, differs=True)
        images[place - len(broken)] = to_array(image)
        if keeps:
            files.append(file)
    return Decoded(images[: len(task) - len(broken)], broken, files=files)


def in_order(pool: Executor, work: Callable[[T], R], tasks: Iterable[T], ahead: int) -> Iterator[R]:
    """The results of tasks in their order, of which so many are begun before they are asked for."""
    begun: deque[Future[R]] = deque()
    try:
        for task in tasks:
            begun.append(pool.submit(work, task))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


class Decoders:
    """Works on pictures for several threads; a context manager, whose processes end with it."""

    def __init__(self, num: int | None = None, alone_s: float = _ALONE_S) -> None:
        """As many tasks at a time as `num`, by default the cores that this process may use.

        Other processes are started when decoding has gone on for `alone_s` seconds.
        """
        self._cores = [_Core() for _ in range(usable_cores() if num is None else num)]
        self._free: SimpleQueue[_Core] = SimpleQueue()
        for core in self._cores:
            self._free.put(core)
        self._alone_s, self._began = alone_s, time.monotonic()
        self._starter: Thread | None = None
        self._ended, self._lock = False, Lock()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._ended = True
        # What has begun meanwhile is told to end, and then is not waited for.
        for core in self._cores:
            core.end()
        if self._starter is not None:
            self._starter.join()

    @property
    def num_processes(self) -> int:
        """Other processes that are ready to decode."""
        return sum(core.is_ready for core in self._cores)

    def run(self, work: Callable[[list[bytes | Opened]], R], task: Sequence[Opened]) -> list[R]:
        """Do the work on the pictures of a task, in parts, as soon as a core is free for each.

        Args:
            work: takes the bytes of files, or what opens a picture; it and its result are sent to
                another process and back, if all are bytes.
            task: what opens the pictures.
        """
        self._perhaps_start()
        found = []
        for part in _read(task):
            core = self._free.get()
            try:
                found.append(core.run(work, part))
            finally:
                self._free.put(core)
        return found

    def _perhaps_start(self) -> None:
        # A single core is busy with this process's own work.
        if len(self._cores) < 2 or time.monotonic() - self._began < self._alone_s:
            return
        with self._lock:
            if self._starter is None and not self._ended:
                self._starter = Thread(target=self._start, name="start decoders", daemon=True)
                self._starter.start()

    def _start(self) -> None:
        for core in self._cores:
            with self._lock:
                # Where no process can be started, decoding goes on in this one.
                if self._ended or not core.start():
                    break
        for core in self._cores:
            core.wait_until_ready()


def _read(task: Sequence[Opened]) -> Iterator[list[bytes | Opened]]:
    """What is to be decoded, with files read, in parts of which files are not too much at once."""
    some: list[bytes | Opened] = []
    size = 0
    for one in task:
        if not isinstance(one, Encoded):
            some.append(one)
            continue
        try:
            data = one.read()
        except StorageError:
            raise
        # Stores raise errors of many kinds.
        except Exception as error:
            some.append(partial(_fail, error))
            continue
        some.append(data)
        size += len(data)
        if size > _MOST_READ:
            yield some
            some, size = [], 0
    if some:
        yield some


def _fail(error: Exception) -> NoReturn:
    raise error


class _Core:
    """Computes in a process of its own if that is ready, else in this one."""

    def __init__(self) -> None:
        self.is_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._to: Connection | None = None
        self._from: Connection | None = None
        self._shared: SharedMemory | None = None

    def run(self, work: Callable[[list[bytes | Opened]], R], part: list[bytes | Opened]) -> R:
        if self.is_ready and all(isinstance(one, bytes) for one in part):
            assert self._to is not None and self._from is not None and self._shared is not None
            try:
                self._to.send((work, part))
                result: R = self._shared.taken(*self._from.recv())
                return result
            # It has been killed, as by a system that is short of memory.
            except (OSError, EOFError):
                self.is_ready = False
        return work(part)

    def start(self) -> bool:
        """Start the process, which is ready later; returns whether that went well."""
        # One that computes on one core needs no threads of libraries.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        its_in, to = os.pipe()
        read, its_out = os.pipe()
        self._to, self._from = Connection(to, readable=False), Connection(read, writable=False)
        self._shared = SharedMemory(file := shared_file())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, json.dumps(sys.path), str(file)],
                pass_fds=(file,),
                stdin=its_in,
                stdout=its_out,
                stderr=subprocess.DEVNULL,
                env=os.environ | single,
                # Ctrl-C is for this process, which then ends the others.
                process_group=0,
            )
        except (OSError, ValueError):
            return False
        finally:
            os.close(its_in)
            os.close(its_out)
        return True

    def wait_until_ready(self) -> None:
        if self._process is not None and self._from is not None:
            with suppress(OSError, EOFError):
                self._from.recv_bytes()
                self.is_ready = True

    def end(self) -> None:
        self.is_ready = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._shared is not None:
            self._shared.close()


def serve() -> None:
    """Work on what comes in on standard input, until the process at its other end has ended."""
    # What a library prints goes elsewhere.
    out = os.dup(1)
    os.dup2(2, 1)
    asked, told = Connection(0, writable=False), Connection(out, readable=False)
    shared = SharedMemory(int(sys.argv[2]))
    told.send_bytes(b"ready")
    while True:
        try:
            work, part = asked.recv()
        except EOFError:
            return
        told.send(shared.put(work(part)))
