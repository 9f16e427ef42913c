"""Signs of life of a run's workers, and the actor that keeps them.

Without torch, whose import would take longer than all that the actor does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """A sign of life of a worker.

    Attributes:
        rank: of the worker.
        address: of its node; node_id is Ray's.
        pid: of its process.
        phases: how many phases of training it has begun.
        phase: the latest of them.
    """

    rank: int
    address: str
    node_id: str
    pid: int
    phases: int
    phase: str

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.pid} on {self.address}, {self.phase})"


class Pulse:
    """The actor that keeps each worker's latest beat."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[Beat, float]] = {}

    def beat(self, beat: Beat) -> None:
        self._beats[beat.rank] = beat, time.monotonic()

    def latest(self) -> list[tuple[Beat, float]]:
        """The latest beats, by rank, and the seconds since each."""
        now = time.monotonic()
        return [(beat, now - at) for _, (beat, at) in sorted(self._beats.items())]

    def forget(self) -> None:
        self._beats.clear()
