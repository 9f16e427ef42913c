"""Waiting for what has to come: a limit that only something that hangs reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

# Slow machines are not to fail: tests of speed measure it, and nothing else does.
HANG_S = 600.0


def until(ask: Callable[[], _T], timeout_s: float = HANG_S, *, pause_s: float = 1.0) -> _T:
    """The first true answer."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(pause_s)
    return answer
