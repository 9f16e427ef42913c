"""Observers of a run in progress: for a terminal, Ray, Weights & Biases, or none."""

from __future__ import annotations

from collections.abc import Sequence

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.snapshot import Snapshot


class Observer:
    """Called on every worker with the same values; this base class does nothing."""

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """The run resumes from a checkpoint, its own or a trunk's, with these rows."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Data for figures; called on the first worker only, before `epoch`."""

    def epoch(self, row: MetricRow) -> None:
        """An epoch has ended, and its checkpoint, if due, is written."""

    def end(self, error: BaseException | None) -> None:
        """The run has ended, successfully or with `error`."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """Tell each observer of rows that an earlier attempt has left."""
        for observer in self._observers:
            observer.inherit(rows)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Hand the snapshot to each observer."""
        for observer in self._observers:
            observer.snapshot(snapshot)

    def epoch(self, row: MetricRow) -> None:
        """Tell each observer that an epoch has ended."""
        for observer in self._observers:
            observer.epoch(row)

    def end(self, error: BaseException | None) -> None:
        """Tell each observer that the run has ended."""
        for observer in self._observers:
            observer.end(error)
