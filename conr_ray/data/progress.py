"""How far work on many samples is, as lines on standard error."""

from __future__ import annotations

import time
from typing import Protocol

from conr_ray.storage import disk

_LINE_EVERY_S = 10.0


class Progress(Protocol):
    """Is told how many samples are done."""

    def passed(self, count: int) -> None:
        """So many were done before."""

    def worked(self, count: int) -> None:
        """So many more are done."""


class Lines:
    """Progress with rate and time left, in a line every ten seconds."""

    def __init__(self, done: str, total: int | None, what: str = "images") -> None:
        """`done` is what is done to `total` samples, None if that is not known: embedded ..."""
        self._verb, self._total, self._kind = done, total, what
        self._seen = self._worked = 0
        self._started = self._told = time.monotonic()

    def passed(self, count: int) -> None:
        """So many were done before."""
        self._seen += count

    def worked(self, count: int) -> None:
        """So many more are done."""
        self._seen, self._worked = self._seen + count, self._worked + count
        now = time.monotonic()
        if now - self._told > _LINE_EVERY_S:
            self._told = now
            rate = self._worked / (now - self._started)
            seen, left = f"{self._seen:,}", ""
            if self._total is not None:
                left_s = round((self._total - self._seen) / rate)
                seen += f" of {self._total:,}"
                left = f", {left_s // 60}:{left_s % 60:02d} left"
            disk.tell(f"{self._verb} {seen} {self._kind}, {rate:,.0f}/s{left}")
