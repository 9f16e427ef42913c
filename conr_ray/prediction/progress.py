"""The progress of a prediction: a live bar with rate and time left, or lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conr_ray.tracking.progress import duration

_LINE_EVERY_S = 10.0


class PredictionProgress:
    """Shows samples done, their rate and the time left; a context manager.

    On a terminal it is a live bar, elsewhere a line every ten seconds.
    """

    def __init__(self, total: int, console: Console) -> None:
        """Of `total` samples, of which those that were done before count as done when passed."""
        self._total, self._console = total, console
        self._seen = self._worked = 0
        self._started: float | None = None
        self._last_line = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, figures="starting")

    def __enter__(self) -> PredictionProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def passed(self, count: int) -> None:
        """So many samples were done before."""
        self._seen += count

    def worked(self, count: int) -> None:
        """So many more are done."""
        now = time.monotonic()
        self._seen += count
        if self._started is None:
            # The time until the first batch (start, loading) is not representative.
            self._started = self._last_line = now
            return
        self._worked += count
        rate = self._worked / max(1e-9, now - self._started)
        left = duration((self._total - self._seen) / max(1e-9, rate))
        figures = f"{rate:,.0f}/s  {left} left"
        self._bar.update(self._task, completed=self._seen, figures=figures)
        if not self._console.is_terminal and now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"{self._seen:,}/{self._total:,}  {figures}", soft_wrap=True)
