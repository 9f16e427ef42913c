"""A watch over a run's workers: which of them are silent, and which hold up the others.

Workers send beats to an actor, from a thread of their own, and the driver asks it. A process that
is stopped, swapped out or cut off sends none; one that waits in a collective operation sends that
it is where it was. The answer to a beat says whether the worker is to stop.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from conr_ray.engine.stopping import stop_request
from conr_ray.method.collectives import rank
from conr_ray.method.phases import place

# Workers are held up if no phase begins for this many times as long as a silence is told after, and
# as the longest phase so far took.
_TIMES_SILENCE, _TIMES_LONGEST = 2.0, 10.0
# Until a first phase, compiling and opening data may take this long.
_START_S = 600.0
# Between beats at most: a worker hears so late that it is to stop.
_BEAT_S = 1.0


@dataclass(frozen=True)
class Limits:
    """How long workers may do nothing.

    Attributes:
        silent_s: without a beat before a worker is named.
        end_s: before the workers that hold up the run are killed, which restarts it; None: never.
    """

    silent_s: float = 30.0
    end_s: float | None = 1800.0


@dataclass(frozen=True)
class Beat:
    """A sign of life of a worker.

    Attributes:
        rank: of the worker.
        address: of its node; node_id is Ray's.
        pid: of its process.
        phases: how many phases of training it has begun.
        phase: the latest of them.
        stoppable: whether it is training, and would stop after its step.
    """

    rank: int
    address: str
    node_id: str
    pid: int
    phases: int
    phase: str
    stoppable: bool = False

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.pid} on {self.address}, {self.phase})"


class _Pulse:
    """The actor that keeps each worker's latest beat."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._stopping = False

    def beat(self, beat: Beat) -> bool:
        """Keep a beat; return whether its sender is to stop."""
        self._beats[beat.rank] = beat, time.monotonic()
        return self._stopping

    def stop(self) -> None:
        self._stopping = True

    def latest(self) -> list[tuple[Beat, float]]:
        """The latest beats, by rank, and the seconds since each."""
        now = time.monotonic()
        return [(beat, now - at) for _, (beat, at) in sorted(self._beats.items())]

    def forget(self) -> None:
        self._beats.clear()


@contextmanager
def beating(pulse: Any, every_s: float) -> Iterator[None]:
    """Send beats of this worker to `pulse` while in this context."""
    own, node_id = rank(), ray.get_runtime_context().get_node_id()
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(every_s):
            where = place.phases, place.phase, stop_request.heeded
            beat = Beat(own, address, node_id, os.getpid(), *where)
            try:
                answer = pulse.beat.remote(beat)
                if ray.wait([answer], timeout=every_s)[0] and ray.get(answer):
                    stop_request.asked = True
            except Exception:
                return  # The actor is gone, and nobody watches any more.

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Watch:
    """The driver's view of a run's workers; `look` is called now and then, and never waits."""

    def __init__(self, limits: Limits, tell: Callable[[str], None]) -> None:
        """`tell` is given lines for the user."""
        self._limits, self._tell = limits, tell
        strategy = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
        self.pulse: Any = ray.remote(**options)(_Pulse).remote()
        self.every_s = min(_BEAT_S, limits.silent_s / 4)
        self._asked: Any = None
        self._stoppable = self._stopping = False
        self._last_look = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._places: dict[int, tuple[int, float]] = {}
        self._longest_s = 0.0
        self._told: list[str] = []

    def stop_workers(self) -> None:
        """Ask all workers to stop after their step; may be called again.

        Raises:
            KeyboardInterrupt: none of them is training, so that there is nothing to wait for.
        """
        if not self._stoppable:
            raise KeyboardInterrupt
        if not self._stopping:
            self.pulse.stop.remote()
            self._stopping = True

    def look(self) -> None:
        """Tell what is wrong, if anything is; kill what was wrong for too long."""
        now = time.monotonic()
        if now - self._last_look < self.every_s:
            return
        self._last_look = now
        if self._asked is None:
            self._asked = self.pulse.latest.remote()
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return
        try:
            self._judge(ray.get(self._asked), now)
        except RayError as error:
            # Without its actor a run is trained as well.
            self._tell(f"workers are not watched any more: {type(error).__name__}")
            self._last_look = float("inf")
        self._asked = None

    def _judge(self, latest: Sequence[tuple[Beat, float]], now: float) -> None:
        self._stoppable = any(beat.stoppable for beat, _ in latest)
        still = {beat.rank: self._still_s(beat, now) for beat, _ in latest}
        usual_s = max(_TIMES_SILENCE * self._limits.silent_s, _TIMES_LONGEST * self._longest_s)
        silent = [(beat, age) for beat, age in latest if age > self._limits.silent_s]
        # Workers wait for the one that is behind, so that all are where they were.
        held_up = not silent and bool(still) and min(still.values()) > usual_s
        if silent:
            culprits = [beat for beat, _ in silent]
            since_s = max(age for _, age in silent)
            line = f"no sign of life for {since_s:.0f} s from "
        elif held_up:
            behind = min(beat.phases for beat, _ in latest)
            culprits = [beat for beat, _ in latest if beat.phases == behind]
            since_s = min(still.values())
            line = f"no progress for {since_s:.0f} s; the others wait for "
            if len(culprits) == len(latest):
                line = f"no progress for {since_s:.0f} s of "
        else:
            if self._told:
                self._tell("workers are at work again")
                self._told = []
            return
        named = [str(beat) for beat in culprits]
        if silent and 1 < len(silent) == len(latest):
            # With one of them, Ray ends all.
            named = ["any worker: Ray starts them again, or waits for a node"]
        end_s = self._limits.end_s
        if end_s is not None and since_s > end_s:
            self._tell(f"{line}{', '.join(named)}: it is ended, and all workers start again")
            self._end(culprits)
        elif named != self._told:
            until = "" if end_s is None else f"; ended after {end_s:.0f} s"
            self._tell(f"{line}{', '.join(named)}{until}")
            self._told = named

    def _still_s(self, beat: Beat, now: float) -> float:
        """Seconds that a worker has been where it is, beyond what its start may take."""
        phases, since = self._places.get(beat.rank, (-1, now))
        if phases != beat.phases:
            if phases > 0:
                self._longest_s = max(self._longest_s, now - since)
            self._places[beat.rank] = beat.phases, now
            return 0.0
        return now - since - (0.0 if beat.phases else _START_S)

    def _end(self, culprits: Sequence[Beat]) -> None:
        for beat in culprits:
            strategy = NodeAffinitySchedulingStrategy(beat.node_id, soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
            ray.remote(**options)(_kill).remote(beat.pid)
        self.pulse.forget.remote()
        self._begin()


def _kill(pid: int) -> None:
    """End a worker's process on this node, also one that is stopped."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
