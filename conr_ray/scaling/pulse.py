"""Signs of life of workers, and the actor that keeps them.

Loaded without torch, whose import would take longer than all that the actor does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from conr_ray.engine.stopping import stop_request
from conr_ray.method.place import NO_PHASE, place


@dataclass(frozen=True)
class Beat:
    """A sign of life of a worker.

    Attributes:
        run: the trial; empty for the only run of a command.
        rank: of the worker.
        address: of its node; node_id is Ray's.
        pid: of its process.
        phases: how many phases of training it has begun.
        phase: the latest of them.
        stoppable: whether it is training, and would stop after its step.
    """

    run: str
    rank: int
    address: str
    node_id: str
    pid: int
    phases: int
    phase: str
    stoppable: bool = False

    def __str__(self) -> str:
        run = f" of trial {self.run}" if self.run else ""
        return f"worker {self.rank}{run} (process {self.pid} on {self.address}, {self.phase})"


# Beats, and the seconds since each.
Aged = Sequence[tuple[Beat, float]]


class Keeper:
    """The actor that keeps each worker's latest beat, and lines for the user."""

    def __init__(self) -> None:
        self._stopping = False
        self._lines: list[str] = []
        self._beats: dict[tuple[str, int], tuple[Beat, float]] = {}

    def keep(self, beat: Beat) -> bool:
        """Keep a beat; return whether its sender is to stop."""
        self._beats[beat.run, beat.rank] = beat, time.monotonic()
        return self._stopping

    def stop(self) -> None:
        """Have all workers stop after their step."""
        self._stopping = True

    def say(self, line: str) -> None:
        """Keep a line for the next `latest`."""
        self._lines.append(line)

    def latest(self) -> tuple[list[tuple[Beat, float]], list[str]]:
        """The latest beats, by run and rank, and the seconds since each; new lines."""
        now, (lines, self._lines) = time.monotonic(), (self._lines, [])
        return [(beat, now - at) for _, (beat, at) in sorted(self._beats.items())], lines

    def forget(self, run: str, worker: int | None = None) -> None:
        """Forget a worker, or all of a run: they are not watched any more."""
        for key in [key for key in self._beats if key[0] == run and worker in (None, key[1])]:
            del self._beats[key]


@dataclass(frozen=True)
class Pulse:
    """How the workers of a run show that they live; sent to them by the driver.

    Attributes:
        keeper: the actor.
        every_s: seconds between beats.
        run: the trial; empty for the only run of a command.
    """

    keeper: Any
    every_s: float
    run: str = ""

    def of(self, run: str) -> Pulse:
        """The pulse of one of several runs."""
        return replace(self, run=run)

    def say(self, line: str) -> None:
        """Tell the user a line: what workers print themselves is in Ray's logs only."""
        self.keeper.say.remote(line)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send beats of this worker while in this context; only then it is watched."""
        from conr_ray.method.collectives import rank

        own, node_id = rank(), ray.get_runtime_context().get_node_id()
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        ended = threading.Event()
        # A process may train one run after another.
        place.phases, place.phase = 0, NO_PHASE

        def send() -> None:
            # The actor may be gone: then nobody watches any more.
            with suppress(Exception):
                while True:
                    where = place.phases, place.phase, stop_request.heeded
                    beat = Beat(self.run, own, address, node_id, os.getpid(), *where)
                    answer = self.keeper.keep.remote(beat)
                    if ray.wait([answer], timeout=self.every_s)[0] and ray.get(answer):
                        stop_request.asked = True
                    if ended.wait(self.every_s):
                        break
                self.keeper.forget.remote(self.run, own)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
