"""The trials of a search as a table, read from the study and the trials' directories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import pyarrow as pa
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.metric_names import (
    AGREEMENT_WITH_LABELS,
    COST_METRICS,
    LABEL_FREE_METRICS,
    LABEL_FREE_SCORES,
    LABELLED_METRICS,
)
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_attributes import FAILURE, PARENT, TRIAL_ID, Leg, without_retried
from conr_ray.tracking.progress import duration

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
    TrialState.WAITING: "waiting",
}
_LABELLED, _LABEL_FREE = tuple(AGREEMENT_WITH_LABELS), tuple(LABEL_FREE_SCORES)[:2]
_FIGURES = (*LABELLED_METRICS, *LABEL_FREE_METRICS, *COST_METRICS)


@dataclass(frozen=True)
class Trial:
    """A trial's point, final state, and the metrics of its last evaluated epoch.

    `values` are those of the search's metrics. A trial is in the Pareto set if no complete trial is
    better in one of them and as good in all others. `epochs` counts the whole run, of which the
    first `inherited_epochs` are those of its `parent`. `time_s` is the time of the epochs after its
    trunk or parent, `trunk_time_s` of those in the trunk, `built_time_s` of the part of the trunk
    that was trained for this trial. `failure` is why it failed, if that is known. `rows` are the
    rows of its metrics.parquet.
    """

    trial_id: str
    number: int
    state: str
    point: dict[str, Any]
    values: tuple[float, ...] | None
    in_pareto_set: bool
    parent: int | None
    inherited_epochs: int
    epochs: int
    time_s: float
    trunk_time_s: float
    built_time_s: float
    origin: Origin | None
    figures: dict[str, float | None]
    rows: list[MetricRow] = field(repr=False)
    failure: str | None = None

    @classmethod
    def of(
        cls,
        frozen: FrozenTrial,
        space: SearchSpace,
        files: tuple[list[MetricRow], Origin | None],
        state: str,
    ) -> Trial:
        """Build a trial from an Optuna record and the result of `read_files`.

        A complete one whose files are gone or damaged is `lost`.
        """
        rows, origin = files
        times_s = [float(row.get("epoch_time_s") or 0) for row in rows]
        leg = Leg.of(frozen, space)
        trunk = origin.epoch if origin else 0
        built = origin.built_epochs if origin else 0
        evaluated: MetricRow = next(
            (row for row in reversed(rows) if all(row.get(m) is not None for m in space.metrics)),
            {},
        )
        return cls(
            trial_id=str(frozen.user_attrs[TRIAL_ID]),
            number=frozen.number,
            state="lost" if state == "complete" and not evaluated else state,
            point=frozen.params,
            values=tuple(float(evaluated[m] or 0) for m in space.metrics) if evaluated else None,
            in_pareto_set=False,
            parent=leg.parent,
            inherited_epochs=leg.begin,
            epochs=len(rows),
            time_s=sum(times_s[trunk + leg.begin :]),
            trunk_time_s=sum(times_s[:trunk]),
            built_time_s=sum(times_s[trunk - built : trunk]),
            origin=origin,
            figures={
                name: _newest(rows, name)
                if name in LABEL_FREE_SCORES
                else _newest([evaluated], name)
                for name in _FIGURES
            },
            rows=rows,
            failure=frozen.user_attrs.get(FAILURE),
        )


def _newest(rows: list[MetricRow], name: str) -> float | None:
    """The last value of a metric that not every evaluated epoch has."""
    values = (row.get(name) for row in reversed(rows))
    return next((float(value) for value in values if value is not None), None)


def read_files(directory: RunDirectory) -> tuple[list[MetricRow], Origin | None]:
    """The metric rows of the run in `directory`, and its origin."""
    return directory.metric_rows(), Origin.read(directory)


@dataclass(frozen=True)
class Cost:
    """Epochs and seconds that a search has trained, and would have trained without trunks."""

    epochs: int
    time_s: float
    unshared_epochs: int
    unshared_time_s: float

    @classmethod
    def of(cls, trials: list[Trial]) -> Cost:
        """The cost of a search's trials, including trunks trained for them."""
        origins = [trial.origin for trial in trials if trial.origin is not None]
        unshared_epochs = sum(trial.epochs - trial.inherited_epochs for trial in trials)
        return cls(
            epochs=unshared_epochs - sum(o.epoch - o.built_epochs for o in origins),
            time_s=sum(trial.time_s + trial.built_time_s for trial in trials),
            unshared_epochs=unshared_epochs,
            unshared_time_s=sum(trial.time_s + trial.trunk_time_s for trial in trials),
        )

    def __str__(self) -> str:
        text = f"{self.epochs} epochs trained in {duration(self.time_s)}"
        if self.epochs < self.unshared_epochs:
            text += (
                f"; without trunks {self.unshared_epochs} in {duration(self.unshared_time_s)}, "
                f"{self.unshared_epochs / self.epochs:.1f} times as many"
            )
        return text


def read_trials(
    study: optuna.Study,
    space: SearchSpace,
    search_uri: str,
    read: Callable[[RunDirectory], tuple[list[MetricRow], Origin | None]] = read_files,
) -> list[Trial]:
    """All trials, the best first: complete ones, then stopped ones, then the rest.

    A failed trial that is run again counts as its newest attempt, once that has begun. In a
    population, trials that a later leg continues are `continued`. With several metrics the Pareto
    set comes first, sorted by the first metric. `read` reads a trial's directory.
    """
    all_trials = without_retried(study.get_trials(deepcopy=False))
    known = [
        trial
        for trial in all_trials
        if TRIAL_ID in trial.user_attrs and trial.state != TrialState.WAITING
    ]
    parents = {trial.user_attrs.get(PARENT) for trial in all_trials}
    trials = [
        Trial.of(
            trial,
            space,
            read(RunDirectory(f"{search_uri}/trials/{trial.user_attrs[TRIAL_ID]}")),
            "continued" if trial.number in parents else _STATES[trial.state],
        )
        for trial in known
    ]
    trials = _with_pareto_set(trials, space)
    sign = -1 if space.direction == "max" else 1
    ranks = {"complete": 0, "continued": 1, "stopped": 1}
    return sorted(
        trials,
        key=lambda t: (
            ranks.get(t.state, 2),
            not t.in_pareto_set,
            sign * t.values[0] if t.values is not None else 0.0,
        ),
    )


def _with_pareto_set(trials: list[Trial], space: SearchSpace) -> list[Trial]:
    """The trials, those in the Pareto set marked."""
    signs = [1 if direction == "max" else -1 for direction in space.directions]
    points = {
        trial.number: tuple(s * v for s, v in zip(signs, trial.values, strict=True))
        for trial in trials
        if trial.state == "complete" and trial.values is not None
    }

    def beaten(own: tuple[float, ...]) -> bool:
        others = (other for other in points.values() if other != own)
        return any(all(o >= v for o, v in zip(other, own, strict=True)) for other in others)

    front = {number for number, point in points.items() if not beaten(point)}
    return [replace(trial, in_pareto_set=trial.number in front) for trial in trials]


def best_trial(trials: list[Trial]) -> Trial | None:
    """The best of the trials that trained all their epochs; None if there are none.

    With several metrics, it is the one in the Pareto set that is best in the first metric.
    """
    return trials[0] if trials and trials[0].state == "complete" else None


def to_arrow(trials: list[Trial], space: SearchSpace) -> pa.Table:
    """One row per trial: id, state, searched fields by name, metrics, epochs, time."""
    columns: dict[str, Any] = {
        "trial_id": [t.trial_id for t in trials],
        "number": [t.number for t in trials],
        "state": [t.state for t in trials],
    }
    for name, dimension in space.search.items():
        values = [t.point.get(name) for t in trials]
        kinds = {type(value) for value in dimension.choice or () if value is not None}
        # A column has one type: numbers mixed with words, as in 30 and never, become text.
        as_words = len(kinds) > 1 and not kinds <= {int, float}
        columns[name] = [None if v is None else str(v) for v in values] if as_words else values
    for name in _FIGURES:
        columns[name] = [t.figures[name] for t in trials]
    columns["pareto"] = [t.in_pareto_set for t in trials]
    columns["parent"] = [t.parent for t in trials]
    columns["epochs"] = [t.epochs for t in trials]
    columns["forked_at"] = [t.origin.epoch if t.origin else t.inherited_epochs for t in trials]
    columns["trunk"] = [t.origin.trunk if t.origin else None for t in trials]
    columns["time_s"] = [t.time_s for t in trials]
    columns["failure"] = pa.array([t.failure for t in trials], pa.string())
    return pa.table(columns)


def to_rich(trials: list[Trial], space: SearchSpace, most: int = 20) -> Table:
    """The best `most` trials for an 80-column terminal; fields are shortened to their last name.

    The search's metrics come first; agreement with labels is shown if there are labels.
    """
    shown = _LABELLED if any(t.figures["acc"] is not None for t in trials) else _LABEL_FREE
    figures = list(dict.fromkeys([*space.metrics, *shown]))
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("trial", "state", *(name.rpartition(".")[2] for name in space.search)):
        # Headers can wrap at spaces.
        table.add_column(name.replace("_", " "), justify="left" if name == "state" else "right")
    for name in (*figures, "epochs", "time"):
        table.add_column(name.replace("_", " "), justify="right")
    for trial in trials[:most]:
        table.add_row(
            str(trial.number),
            "pareto" if len(space.metrics) > 1 and trial.in_pareto_set else trial.state,
            *(_short(trial.point.get(name)) for name in space.search),
            *(_short(trial.figures.get(name)) for name in figures),
            str(trial.epochs),
            duration(trial.time_s),
        )
    if len(trials) > most:
        table.caption = f"{len(trials) - most} more in trials.parquet"
    return table


def lineage(trial: Trial, trials: list[Trial]) -> list[Trial]:
    """A leg's ancestors, the oldest first, and the leg itself."""
    by_number = {one.number: one for one in trials}
    found = [trial]
    while (parent := found[0].parent) is not None:
        found.insert(0, by_number[parent])
    return found


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
