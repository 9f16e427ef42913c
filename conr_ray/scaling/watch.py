"""A watch over the workers of runs: which of them are silent, and which hold up the others.

Workers send beats to an actor, from a thread of their own, and the driver asks it. A process that
is stopped, swapped out or cut off sends none; one that waits in a collective operation sends that
it is where it was. The answer to a beat says whether the worker is to stop. A search has one watch
for all of its trials.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from conr_ray.errors import RunFailed
from conr_ray.method.place import NO_PHASE, UPLOAD
from conr_ray.scaling.pulse import Aged, Beat, Keeper, Pulse

# Workers are held up if no phase begins for this many times as long as a silence is told after, and
# as the longest phase so far took.
_TIMES_SILENCE, _TIMES_LONGEST = 2.0, 10.0
# Beyond that, these phases may take so long: a start compiles and opens data, a checkpoint is sent.
_ALLOWED_S = {NO_PHASE: 600.0, UPLOAD: 3600.0}
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


class Watch:
    """The driver's view of workers; `look` is called now and then, and never waits."""

    def __init__(self, limits: Limits, tell: Callable[[str], None]) -> None:
        """`tell` is given lines for the user."""
        self._limits, self._tell = limits, tell
        strategy = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
        keeper: Any = ray.remote(**options)(Keeper).remote()
        self.pulse = Pulse(keeper, every_s=min(_BEAT_S, limits.silent_s / 4))
        self._asked: Any = None
        self._stoppable = self._stopping = False
        self._last_look = time.monotonic()
        self._runs: dict[str, _Run] = {}

    def stop_workers(self) -> None:
        """Ask all workers to stop after their step; may be called again.

        Raises:
            KeyboardInterrupt: none of them is training, so that there is nothing to wait for.
        """
        if not self._stoppable:
            raise KeyboardInterrupt
        if not self._stopping:
            self.pulse.keeper.stop.remote()
            self._stopping = True

    def look(self, runs: Collection[str] = ("",)) -> None:
        """Tell what is wrong, if anything is; kill what was wrong for too long.

        Args:
            runs: those that are to be at work now.

        Raises:
            RunFailed: there is no Ray any more.
        """
        now = time.monotonic()
        if now - self._last_look < self.pulse.every_s:
            return
        if now - self._last_look > self._limits.silent_s:
            # Whoever reports to this process had to wait for it.
            self._runs.clear()
        self._last_look = now
        if self._asked is None:
            self._asked = self.pulse.keeper.latest.remote()
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return
        try:
            latest, lines = ray.get(self._asked)
            for line in lines:
                self._tell(line)
            self._judge(latest, now, runs)
        except RayError as error:
            if not any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
                raise RunFailed(
                    "Ray has died, on this machine or on all nodes of its cluster: resume"
                ) from None
            # Without its actor a run is trained as well.
            self._tell(f"workers are not watched any more: {type(error).__name__}")
            self._last_look = float("inf")
        self._asked = None

    def _judge(self, latest: Aged, now: float, runs: Collection[str]) -> None:
        self._stoppable = any(beat.stoppable for beat, _ in latest)
        by_run = defaultdict(list)
        for beat, age in latest:
            by_run[beat.run].append((beat, age))
        self._runs = {
            run: self._runs.get(run) or _Run(self._limits) for run in by_run if run in runs
        }
        for run, judged in self._runs.items():
            line, culprits = judged.judge(by_run[run], now)
            if line:
                self._tell(line)
            if culprits:
                self._end(culprits)

    def _end(self, culprits: Sequence[Beat]) -> None:
        run = culprits[0].run
        for beat in culprits:
            strategy = NodeAffinitySchedulingStrategy(beat.node_id, soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
            ray.remote(**options)(_kill).remote(beat.pid)
        self.pulse.keeper.forget.remote(run)
        self._runs[run] = _Run(self._limits)


class _Run:
    """What is known of the workers of a run, which wait for one another."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places: dict[int, tuple[int, float]] = {}
        self._longest_s = 0.0
        self._told: list[str] = []

    def judge(self, latest: Aged, now: float) -> tuple[str, Sequence[Beat]]:
        """A line about workers that do nothing, empty if it is told already, and whom to end."""
        still = {beat.rank: self._still_s(beat, now) for beat, _ in latest}
        usual_s = max(_TIMES_SILENCE * self._limits.silent_s, _TIMES_LONGEST * self._longest_s)
        silent = [(beat, age) for beat, age in latest if age > self._limits.silent_s]
        # Workers wait for the one that is behind, so that all are where they were.
        if silent:
            culprits = [beat for beat, _ in silent]
            since_s = max(age for _, age in silent)
            line = f"no sign of life for {since_s:.0f} s from "
        elif still and min(still.values()) > usual_s:
            behind = min(beat.phases for beat, _ in latest)
            culprits = [beat for beat, _ in latest if beat.phases == behind]
            since_s = min(still.values())
            line = f"no progress for {since_s:.0f} s; the others wait for "
            if len(culprits) == len(latest):
                line = f"no progress for {since_s:.0f} s of "
        else:
            again, self._told = bool(self._told), []
            run = f" of trial {latest[0][0].run}" if latest[0][0].run else ""
            return (f"workers{run} are at work again" if again else ""), []
        named = [str(beat) for beat in culprits]
        if silent and 1 < len(silent) == len(latest):
            # With one of them, Ray ends all.
            named = ["any worker: Ray starts them again, or waits for a node"]
        line += ", ".join(named)
        end_s = self._limits.end_s
        if end_s is not None and since_s > end_s:
            return f"{line}: ended, and started again from the newest checkpoint", culprits
        if named == self._told:
            return "", []
        self._told = named
        return line + ("" if end_s is None else f"; ended after {end_s:.0f} s"), []

    def _still_s(self, beat: Beat, now: float) -> float:
        """Seconds that a worker has been where it is, beyond what is allowed there."""
        phases, since = self._places.get(beat.rank, (-1, now))
        if phases != beat.phases:
            if beat.phases > phases > 0:
                self._longest_s = max(self._longest_s, now - since)
            self._places[beat.rank] = beat.phases, now
            return 0.0
        return now - since - _ALLOWED_S.get(beat.phase, 0.0)


def _kill(pid: int) -> None:
    """End a worker's process on this node, also one that is stopped."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
