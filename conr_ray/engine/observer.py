"""What a run tells while it goes on: to a terminal, to Ray, to Weights & Biases, or to nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

# One row of metrics.parquet: `epoch`, `stage` and figures of that epoch.
MetricRow = Mapping[str, float | int | str | None]


class Observer(Protocol):
    """Told by every worker, with the same values on each; after the state of the epoch is saved."""

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """The run goes on from a trunk, whose epochs these are."""

    def epoch(self, row: MetricRow) -> None:
        """An epoch has ended."""

    def end(self, error: BaseException | None) -> None:
        """The run has ended, well or with `error`."""


class Observers:
    """Several observers as one; with none it is the null observer."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        for observer in self._observers:
            observer.inherit(rows)

    def epoch(self, row: MetricRow) -> None:
        for observer in self._observers:
            observer.epoch(row)

    def end(self, error: BaseException | None) -> None:
        for observer in self._observers:
            observer.end(error)
