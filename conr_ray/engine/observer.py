"""What a run tells while it goes on: to a terminal, to Ray, to Weights & Biases, or to nobody."""

from __future__ import annotations

from collections.abc import Sequence

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.snapshot import Snapshot


class Observer:
    """Told by every worker, with the same values on each; this one does nothing."""

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """The run goes on from a checkpoint, its own or a trunk's, whose epochs these are."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """What figures are drawn from; told by the first worker alone, before the epoch's row."""

    def epoch(self, row: MetricRow) -> None:
        """An epoch has ended, and its state is saved."""

    def end(self, error: BaseException | None) -> None:
        """The run has ended, well or with `error`."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        for observer in self._observers:
            observer.inherit(rows)

    def snapshot(self, snapshot: Snapshot) -> None:
        for observer in self._observers:
            observer.snapshot(snapshot)

    def epoch(self, row: MetricRow) -> None:
        for observer in self._observers:
            observer.epoch(row)

    def end(self, error: BaseException | None) -> None:
        for observer in self._observers:
            observer.end(error)
