"""A run's progress: a live bar with the time left, or one line per epoch in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.outline import GROUP_STAGE_BEGINS
from conr_ray.metric_names import AGREEMENT_WITH_LABELS

_SHOWN = ("loss", *AGREEMENT_WITH_LABELS, "neighbor_consistency", "neighbor_purity")


class RunProgress(Observer):
    """An observer that shows epochs done, metrics and time left; a context manager.

    On a terminal it is a live bar. Elsewhere (a pipe, a log) it prints a line per epoch, at most
    one in ten seconds, and always one for the last epoch.
    """

    def __init__(self, num_epochs: int, done: int, console: Console) -> None:
        self._num_epochs = num_epochs
        self._first = done
        self._console = console
        self._started = time.monotonic()
        self._last_line = 0.0
        self._shown: dict[str, float] = {}
        self._stage: str | None = None
        self._bar = Progress(
            TextColumn("{task.fields[stage]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=num_epochs, completed=done, stage="starting", left="", figures=""
        )

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """Begin behind the epochs of an earlier attempt."""
        self._first = len(rows)
        self._stage = str(rows[-1]["stage"]) if rows else None

    def epoch(self, row: MetricRow) -> None:
        """Move the bar, and show the newest metrics."""
        done = int(row["epoch"] or 0) + 1
        if done == self._first + 1:
            # The time until the first epoch ends (start, compilation) is not representative.
            self._started = time.monotonic() - float(row.get("epoch_time_s") or 0)
        # Keep showing the metrics of an earlier evaluation.
        self._shown |= {n: float(row[n] or 0) for n in _SHOWN if row.get(n) is not None}
        figures = "  ".join(f"{name} {value:.3f}" for name, value in self._shown.items())
        each_s = (time.monotonic() - self._started) / max(1, done - self._first)
        left = f"{duration(each_s * (self._num_epochs - done))} left"
        if (self._stage, row["stage"]) == ("instance", "group"):
            self._console.print(GROUP_STAGE_BEGINS, soft_wrap=True)
        self._stage = str(row["stage"])
        stage = f"{row['stage']} stage"
        self._bar.update(self._task, completed=done, stage=stage, left=left, figures=figures)
        due = time.monotonic() - self._last_line > 10 or done == self._num_epochs
        if not self._console.is_terminal and due:
            self._last_line = time.monotonic()
            self._console.print(
                f"epoch {done}/{self._num_epochs}  {stage}  {left}  {figures}", soft_wrap=True
            )


def duration(seconds: float) -> str:
    """Seconds as 45s, 3m10s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
