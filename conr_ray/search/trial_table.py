"""The trials of a search as a table, read from the study and the trials' directories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
import pyarrow as pa
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from conr_ray.engine.label_free import LABEL_FREE_SCORES
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk import Origin
from conr_ray.search.space import LABEL_FREE_METRICS, LABELLED_METRICS, SearchSpace
from conr_ray.search.study import TRIAL_ID
from conr_ray.tracking.progress import duration

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
    TrialState.WAITING: "waiting",
}
_LABELLED, _LABEL_FREE = ("acc", "nmi", "ari"), LABEL_FREE_SCORES[:2]
_FIGURES = (*LABELLED_METRICS, *LABEL_FREE_METRICS)


@dataclass(frozen=True)
class Trial:
    """A trial's point, how it ended, and the figures of its last evaluated epoch.

    `epochs` are those of the whole run. `time_s` is that of the epochs after its trunk,
    `trunk_time_s` of those in it, `built_time_s` of the part of these that was trained for it.
    """

    trial_id: str
    number: int
    state: str
    point: dict[str, Any]
    value: float | None
    epochs: int
    time_s: float
    trunk_time_s: float
    built_time_s: float
    origin: Origin | None
    figures: dict[str, float | None]

    @classmethod
    def read(cls, frozen: FrozenTrial, search_uri: str, metric: str) -> Trial:
        """The trial of an Optuna record."""
        trial_id = str(frozen.user_attrs[TRIAL_ID])
        directory = RunDirectory(f"{search_uri}/trials/{trial_id}")
        rows, origin = directory.metric_rows(), Origin.read(directory)
        times_s = [float(row.get("epoch_time_s") or 0) for row in rows]
        fork = origin.epoch if origin else 0
        built = origin.built_epochs if origin else 0
        evaluated = next((row for row in reversed(rows) if row.get(metric) is not None), {})
        value = evaluated.get(metric)
        return cls(
            trial_id=trial_id,
            number=frozen.number,
            state=_STATES[frozen.state],
            point=frozen.params,
            value=None if value is None else float(value),
            epochs=len(rows),
            time_s=sum(times_s[fork:]),
            trunk_time_s=sum(times_s[:fork]),
            built_time_s=sum(times_s[fork - built : fork]),
            origin=origin,
            figures={name: evaluated.get(name) for name in _FIGURES},  # type: ignore[misc]
        )


@dataclass(frozen=True)
class Cost:
    """Epochs and seconds that a search has trained, and what it would have without trunks."""

    epochs: int
    time_s: float
    unshared_epochs: int
    unshared_time_s: float

    @classmethod
    def of(cls, trials: list[Trial]) -> Cost:
        """Of the trials of a search, the trunks included that were trained for them."""
        origins = [trial.origin for trial in trials if trial.origin is not None]
        unshared_epochs = sum(trial.epochs for trial in trials)
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


def read_trials(study: optuna.Study, space: SearchSpace, search_uri: str) -> list[Trial]:
    """All trials, the best first: complete ones, then stopped ones, then the rest."""
    known = [trial for trial in study.get_trials(deepcopy=False) if TRIAL_ID in trial.user_attrs]
    trials = [Trial.read(trial, search_uri, space.metric) for trial in known]
    sign = -1 if space.direction == "max" else 1
    ranks = {"complete": 0, "stopped": 1}
    return sorted(
        trials,
        key=lambda t: (ranks.get(t.state, 2), sign * t.value if t.value is not None else 0.0),
    )


def best_trial(trials: list[Trial]) -> Trial | None:
    """The best of the trials that trained all their epochs, None where none did."""
    return trials[0] if trials and trials[0].state == "complete" else None


def to_arrow(trials: list[Trial], space: SearchSpace) -> pa.Table:
    """A row for each trial: id, state, the searched fields by name, figures, epochs, time."""
    columns: dict[str, list[Any]] = {
        "trial_id": [t.trial_id for t in trials],
        "number": [t.number for t in trials],
        "state": [t.state for t in trials],
    }
    for name in space.search:
        columns[name] = [t.point.get(name) for t in trials]
    for name in _FIGURES:
        columns[name] = [t.figures[name] for t in trials]
    columns["epochs"] = [t.epochs for t in trials]
    columns["forked_at"] = [t.origin.epoch if t.origin else 0 for t in trials]
    columns["trunk"] = [t.origin.trunk if t.origin else None for t in trials]
    columns["time_s"] = [t.time_s for t in trials]
    return pa.table(columns)


def to_rich(trials: list[Trial], space: SearchSpace, most: int = 20) -> Table:
    """The best `most` trials for a terminal of 80 columns. Fields are shortened to their last name.

    The metric comes first; what agrees with labels is shown where there are labels.
    """
    shown = _LABELLED if any(t.figures["acc"] is not None for t in trials) else _LABEL_FREE
    figures = [space.metric, *(name for name in shown if name != space.metric)]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("trial", "state", *(field.rpartition(".")[2] for field in space.search)):
        # A header may break where it has a space.
        table.add_column(name.replace("_", " "), justify="left" if name == "state" else "right")
    for name in (*figures, "epochs", "time"):
        table.add_column(name.replace("_", " "), justify="right")
    for trial in trials[:most]:
        table.add_row(
            str(trial.number),
            trial.state,
            *(_short(trial.point.get(name)) for name in space.search),
            *(_short(trial.figures.get(name)) for name in figures),
            str(trial.epochs),
            duration(trial.time_s),
        )
    if len(trials) > most:
        table.caption = f"{len(trials) - most} more in trials.parquet"
    return table


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
