"""The data of a search for its report, read from its directory."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.metric_names import LABEL_FREE_SCORES
from conr_ray.reporting.chart_style import ALONE, VARIANTS
from conr_ray.reporting.names import titles
from conr_ray.reporting.run_data import (
    RunData,
    curve,
    group_start,
    read_files_that_are_whole,
    variant_of,
    with_figures,
)
from conr_ray.searching.importances import parameter_importances
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_table import Cost, Trial, best_trial, read_trials

# Fewest pairs for a meaningful rank correlation.
_FEWEST_PAIRS = 3
# Most values of a field that a table of two fields lists individually.
_MOST_VALUES = 10


@dataclass(frozen=True)
class SearchData:
    """The current state of a search.

    Attributes:
        name: name of its folder.
        space: the searched space; `space_yaml` is its file.
        trials: the best first.
        importances: share of each metric's variance that each field explains.
        best_run: the best trial that has a snapshot; `best_alone` is the best of those without a
            group stage, if there are others.
        variants: the method of each trial, by its number.
        failures: why trials failed, by their number.
        running: whether the search is running now.
        problems: one line for each thing that could not be read.
    """

    name: str
    space: SearchSpace
    space_yaml: str
    trials: list[Trial]
    importances: dict[str, dict[str, float]] = field(default_factory=dict)
    best_run: RunData | None = None
    best_alone: RunData | None = None
    variants: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    running: bool = False
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Trial | None:
        """The best trial that trained all its epochs."""
        return best_trial(self.trials)

    @property
    def complete(self) -> list[Trial]:
        """Trials that trained all their epochs and have values."""
        return [t for t in self.trials if t.state == "complete" and t.values is not None]

    @property
    def states(self) -> Counter[str]:
        """Number of trials in each state."""
        return Counter(self.state(trial) for trial in self.trials)

    def state(self, trial: Trial) -> str:
        """How a trial ended, or `running`."""
        return "running" if self.running and trial.state == "interrupted" else trial.state

    @property
    def cost(self) -> Cost:
        """The cost of all trials."""
        return Cost.of(self.trials)

    @property
    def labelled(self) -> bool:
        """Whether its images have labels."""
        return any(trial.figures.get("acc") is not None for trial in self.trials)

    @property
    def fields(self) -> dict[str, str]:
        """The searched fields and their display names."""
        return titles(self.space.search)

    @property
    def outcome(self) -> str:
        """The metric by which fields are compared: ACC with labels, else the search's."""
        return "acc" if self.labelled else self.space.metric

    def best_of(self, outcomes: Iterable[float]) -> float:
        """The best of several outcomes: the largest, or the smallest if minimised."""
        small = self.outcome == self.space.metric and self.space.direction == "min"
        return min(outcomes) if small else max(outcomes)


def read_search(
    directory: SearchDirectory, *, running: bool = False, draw_map: bool = True
) -> SearchData:
    """The search in a directory. Damaged files of trials are listed in `problems`.

    Raises:
        UserError: there is no search, or its space or study cannot be read.
    """
    space = directory.read_space()
    if space is None:
        raise UserError(f"{directory.uri} holds no search (no space.yaml): give a search's folder")
    study = directory.read_study()
    problems: dict[str, str] = {}
    trials: list[Trial] = []
    importances: dict[str, dict[str, float]] = {}
    if study is not None:
        names = directory.files.folder_names("trials")
        read = _reader(directory, names, problems)
        trials = read_trials(study, space, directory.uri, read)
        importances = {m: parameter_importances(space, study, m) for m in space.metrics}
    variants = {trial.number: variant_of(space.config(trial.point)) for trial in trials}
    alone = [trial for trial in trials if variants[trial.number] == ALONE]
    others = [trial for trial in trials if variants[trial.number] != ALONE]
    return SearchData(
        directory.name,
        space,
        directory.files.read_text("space.yaml") or "",
        trials,
        importances,
        _best_with_snapshot(directory, space, others or alone, draw_map=draw_map),
        _best_with_snapshot(directory, space, alone, draw_map=draw_map) if others else None,
        variants,
        _failures(directory, trials),
        running,
        problems,
    )


def _reader(
    directory: SearchDirectory, names: list[str], problems: dict[str, str]
) -> Callable[[RunDirectory], tuple[list[MetricRow], Origin | None]]:
    """Reads trials' directories, all in parallel."""

    def read(name: str) -> tuple[list[MetricRow], Origin | None]:
        found: dict[str, str] = {}
        files = read_files_that_are_whole(RunDirectory(f"{directory.uri}/trials/{name}"), found)
        problems.update({f"trial {name}": problem for problem in found.values()})
        return files

    # In a bucket, each file is a request.
    with ThreadPoolExecutor(1 if directory.files.is_local else 16) as pool:
        found = dict(zip(names, pool.map(read, names), strict=True))
    return lambda run: found.get(run.uri.rpartition("/")[2], ([], None))


def _best_with_snapshot(
    directory: SearchDirectory, space: SearchSpace, trials: Sequence[Trial], *, draw_map: bool
) -> RunData | None:
    for trial in trials:
        run = RunDirectory(f"{directory.uri}/trials/{trial.trial_id}")
        if trial.values is not None and run.has("snapshot/summary.json"):
            config = space.config(trial.point)
            data = RunData(f"trial {trial.number}", config, trial.rows, trial.origin)
            return with_figures(data, run, draw_map=draw_map)
    return None


def _failures(directory: SearchDirectory, trials: Sequence[Trial]) -> dict[int, str]:
    found = {}
    for trial in trials:
        if trial.failure is not None:
            found[trial.number] = trial.failure
        elif trial.state == "failed":
            run = RunDirectory(f"{directory.uri}/trials/{trial.trial_id}")
            try:
                run.raise_failure()
                found[trial.number] = "its processes died, or its metric was not finite"
            except Exception as error:
                found[trial.number] = str(error)
    return found


@dataclass(frozen=True)
class Grid:
    """Means of an outcome over trials by two fields; None if there was no trial."""

    rows: list[Range]
    columns: list[Range]
    means: list[list[float | None]]
    counts: list[list[int]]


def grid_of(data: SearchData, row: str, column: str, outcome: str) -> Grid | None:
    """The outcome by two searched integers; None if one is not searched or there is no trial.

    Stopped trials count with their last values. Many integers are grouped into ranges.
    """
    found = [
        (trial.point[row], trial.point[column], trial.figures[outcome])
        for trial in data.trials
        if {row, column} <= trial.point.keys() and trial.figures.get(outcome) is not None
    ]
    if not found:
        return None
    row_of, column_of = _ranges({r for r, _, _ in found}), _ranges({c for _, c, _ in found})
    known = [(row_of[r], column_of[c], value) for r, c, value in found]
    rows = sorted({row_value for row_value, _, _ in known})
    columns = sorted({column_value for _, column_value, _ in known})
    cells: dict[tuple[Range, Range], list[float]] = {}
    for row_value, column_value, value in known:
        cells.setdefault((row_value, column_value), []).append(float(value or 0))
    lines = [[cells.get((r, c), []) for c in columns] for r in rows]
    means = [[statistics.mean(v) if v else None for v in line] for line in lines]
    return Grid(rows, columns, means, [[len(v) for v in line] for line in lines])


@functools.total_ordering
@dataclass(frozen=True)
class Range:
    """A range of integers, given by the smallest and largest that were tried."""

    low: int
    high: int

    def __lt__(self, other: Range) -> bool:
        return self.low < other.low

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


def _ranges(values: set[int]) -> dict[int, Range]:
    """The range of each value: its own or, for many values, one of a few of similar size."""
    rising = sorted(values)
    if len(rising) <= _MOST_VALUES:
        return {value: Range(value, value) for value in rising}
    parts = np.array_split(np.array(rising), _MOST_VALUES)
    return {int(v): Range(int(part[0]), int(part[-1])) for part in parts for v in part}


@dataclass(frozen=True)
class Group:
    """Outcomes of the trials with the same value of a field."""

    value: Any
    outcomes: list[float]

    @property
    def mean(self) -> float:
        """Mean of the outcomes."""
        return statistics.mean(self.outcomes)

    @property
    def deviation(self) -> float | None:
        """Standard deviation, if there are two or more."""
        return statistics.stdev(self.outcomes) if len(self.outcomes) > 1 else None


def groups_of(data: SearchData, name: str, outcome: str) -> list[Group]:
    """Outcomes of complete trials by the values of a searched field, ascending."""
    found: dict[Any, list[float]] = {}
    for trial in data.complete:
        value = trial.figures.get(outcome)
        if name in trial.point and value is not None:
            found.setdefault(trial.point[name], []).append(value)
    return [Group(value, found[value]) for value in sorted(found, key=lambda v: (str(type(v)), v))]


@dataclass(frozen=True)
class Agreement:
    """A label-free score and ACC of each trial, and their rank correlation."""

    score: str
    trials: list[Trial]
    rho: float | None


def agreements(data: SearchData) -> list[Agreement]:
    """All label-free scores reported along with ACC; empty without labels."""
    found = []
    for name in LABEL_FREE_SCORES:
        trials = [
            trial
            for trial in data.trials
            if None not in (trial.figures.get(name), trial.figures.get("acc"))
        ]
        if not trials:
            continue
        pairs = np.array([[t.figures[name], t.figures["acc"]] for t in trials], float)
        varied = len(pairs) >= _FEWEST_PAIRS and (np.ptp(pairs, axis=0) > 0).all()
        rho = _rank_correlation(pairs) if varied else None
        found.append(Agreement(name, trials, rho))
    return found


def _rank_correlation(pairs: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    # SciPy's statistics take half a second to import, which the report of a run need not wait for.
    from scipy.stats import spearmanr

    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation of a metric over trials of one method, by epochs trained."""

    variant: str
    num_trials: int
    epochs: list[int]
    means: list[float]
    deviations: list[float]


def bands_of(data: SearchData, metric: str) -> list[Band]:
    """One band per method of complete trials; empty if all have the same method."""
    by_variant: dict[str, list[Trial]] = {}
    for trial in data.complete:
        by_variant.setdefault(data.variants[trial.number], []).append(trial)
    if len(by_variant) < 2:
        return []
    bands = []
    for variant in VARIANTS:
        trials = by_variant.get(variant, [])
        values: dict[int, list[float]] = {}
        for trial in trials:
            for epoch, value in zip(*curve(trial.rows, metric), strict=True):
                values.setdefault(epoch, []).append(value)
        # Epochs that only some trials have would make a jump.
        epochs = [epoch for epoch in sorted(values) if len(values[epoch]) == len(trials)]
        if epochs:
            means = [statistics.mean(values[epoch]) for epoch in epochs]
            spread = [statistics.stdev(values[e]) if len(trials) > 1 else 0.0 for e in epochs]
            bands.append(Band(variant, len(trials), epochs, means, spread))
    return bands


def stage_change(data: SearchData) -> int | None:
    """The epoch at which all trials with a group stage begin it, if it is the same."""
    starts = {group_start(trial.rows) for trial in data.trials} - {None}
    return starts.pop() if len(starts) == 1 else None
