"""Named phases of training: where a process is, and how long each takes while a clock runs.

Without a clock, a phase costs two microseconds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from conr_ray.method.place import place


class Clock:
    """Seconds spent in each phase, without those of the phases inside it.

    Attributes:
        seconds: by the outermost phase and the phase itself.
        calls: how often each was entered.
    """

    def __init__(
        self, device: torch.device, left: Callable[[str, str], None] = lambda outer, name: None
    ) -> None:
        """Time work on `device`, which every change of phase waits for.

        `left` is called with the outermost phase and the phase that has ended.
        """
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._device, self._left = device, left
        self._inside: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done in this context."""
        self._account()
        self._inside.append(name)
        outer = self._inside[0]
        self.calls[outer, name] += 1
        try:
            yield
        finally:
            self._account()
            self._inside.pop()
            self._left(outer, name)
            # What a listener does is no one's time.
            self._since = time.perf_counter()

    def _account(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[0], self._inside[-1]] += now - self._since
        self._since = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the phases of this process; one clock runs at a time."""
        global _clock
        _clock = self
        try:
            yield
        finally:
            _clock = None


_clock: Clock | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase of training, in a profile and in its trace."""
    place.phases += 1
    place.phase = name
    if _clock is None:
        yield
        return
    with record_function(name), _clock.phase(name):
        yield
