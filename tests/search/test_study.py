"""The study behind a search: its samplers and its early stopping, without any training."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from conr_ray.errors import UserError
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study import open_study
from conr_ray.searching.study_searcher import (
    EPOCHS,
    POINT,
    StudySearcher,
    num_left,
    retry_failed,
)
from conr_ray.searching.study_storage import journal_file
from conr_ray.searching.trial_attributes import TRIAL_ID
from conr_ray.searching.trial_table import read_trials
from tests.search.test_space import FRACTION, K1, K2, START, space_of

NUMBERS = {K1: {"int": [5, 20]}, FRACTION: {"float": [0.6, 1.0]}}


def value_at(point: dict[str, Any]) -> float:
    """Best at k1 = 12 and an initial fraction of 0.9."""
    return -abs(point[K1] - 12) - 10 * abs(point.get(FRACTION, 0.9) - 0.9)


def run_trials(space: SearchSpace, folder: Path, count: int) -> optuna.Study:
    """Trials without training, by a study that is opened anew for each five."""
    for number in range(count):
        if number % 5 == 0:
            study = open_study(space, journal_file(folder / "study.journal"), "search")
        trial = study.ask()
        study.tell(trial, value_at(space(trial)))
    return study


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "random"])
@pytest.mark.filterwarnings("error")
def test_a_sampler_goes_on_after_a_restart_and_seldom_repeats_itself(
    tmp_path: Path, sampler: str
) -> None:
    space = space_of(tmp_path, NUMBERS, sampler=sampler)
    study = run_trials(space, tmp_path, 25)
    assert study.trials[0].params == {K1: 10, FRACTION: 0.8}
    points = [tuple(trial.params.values()) for trial in study.trials]
    # Optuna's Gaussian process does repeat points at the bounds.
    assert len(set(points)) > (20 if sampler == "gp" else 24)
    later = [trial.value or 0.0 for trial in study.trials[15:]]
    if sampler != "random":
        # At random the mean is -5.7; what has been learnt survives the restarts.
        assert sum(later) / len(later) > -4.5


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_fields_whose_range_depends_on_others_are_drawn_too(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, {K1: {"int": [5, 20]}, K2: {"int": [1, K1]}}, sampler=sampler)
    study = run_trials(space, tmp_path, 15)
    assert all(t.params[K2] <= t.params[K1] for t in study.trials)
    assert len({t.params[K2] for t in study.trials}) > 3


def test_a_grid_is_gone_through_once(tmp_path: Path) -> None:
    search = {K1: {"int": [6, 12], "step": 2}, START: {"choice": [20, 30, "never"]}}
    space = space_of(tmp_path, search, sampler="grid")
    study = run_trials(space, tmp_path, 12)
    points = {tuple(trial.params.values()) for trial in study.trials}
    assert points == {(k1, start) for k1 in (6, 8, 10, 12) for start in (20, 30, "never")}


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "random"])
@pytest.mark.filterwarnings("error")
def test_several_metrics_lead_to_a_set_of_best_trials(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, NUMBERS, sampler=sampler, metric=["nmi", "train_time_s"])
    assert (space.directions, space.scheduler) == (("max", "min"), None)
    searcher = StudySearcher(
        space, open_study(space, journal_file(tmp_path / "study.journal"), "search")
    )
    for number in range(20):
        given = searcher.suggest(str(number))
        assert isinstance(given, dict)
        # Better with each neighbour, and dearer.
        k1, fraction = given[POINT][K1], given[POINT][FRACTION]
        result = {"nmi": k1 - abs(fraction - 0.8), "train_time_s": 2.0 * k1, EPOCHS: 60}
        assert not searcher.should_stop(str(number), result)
        if number == 7:
            result["train_time_s"] = math.nan
        searcher.on_trial_complete(str(number), result)
    study = open_study(space, journal_file(tmp_path / "study.journal"), "search")
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [7]
    # One for each k1 that was tried, the one with the best fraction.
    best = {t.params[K1]: t for t in study.best_trials}
    assert set(best) == {t.params[K1] for t in complete}
    for trial in complete:
        assert trial.values[0] <= best[trial.params[K1]].values[0]


def _ended(searcher: StudySearcher, name: str, **result: Any) -> dict[str, Any]:
    """Have the searcher's next trial end; what it was given."""
    given = searcher.suggest(name)
    assert isinstance(given, dict)
    searcher.on_trial_complete(name, result or None, error=not result)
    return given


def test_failed_trials_are_run_again_where_they_were_when_asked_for(tmp_path: Path) -> None:
    space = space_of(tmp_path, NUMBERS, metric="nmi")

    def opened() -> optuna.Study:
        return open_study(space, journal_file(tmp_path / "study.journal"), "search")

    def states() -> dict[str, str]:
        return {t.trial_id: t.state for t in read_trials(opened(), space, str(tmp_path))}

    searcher = StudySearcher(space, opened())
    lost = _ended(searcher, "lost")
    good = _ended(searcher, "good", nmi=0.5, **{EPOCHS: 60})
    collapsed = _ended(searcher, "collapsed", nmi=math.nan, failure="it collapsed", **{EPOCHS: 9})
    told = [trial.user_attrs.get("failure") for trial in opened().trials]
    assert told == ["its processes died more often than --max-retries allows", None, "it collapsed"]
    assert num_left(space, opened(), 3) == 0
    assert retry_failed(space, opened()) == 2
    # Asked for again before they have run, they are not enqueued twice.
    assert retry_failed(space, opened()) == 0
    assert num_left(space, opened(), 3) == 2
    searcher = StudySearcher(space, opened())
    assert _ended(searcher, "again", nmi=0.7, **{EPOCHS: 60}) == lost
    # A process that dies in between leaves one to go on with.
    assert searcher.suggest("killed") == collapsed
    searcher = StudySearcher(space, opened())
    assert _ended(searcher, "resumed", nmi=math.nan, failure="again", **{EPOCHS: 9}) == collapsed
    assert num_left(space, opened(), 3) == 0
    names = [given[TRIAL_ID] for given in (lost, good, collapsed)]
    # No run has left files, of which a trial has its figures.
    assert states() == dict(zip(names, ["lost", "lost", "failed"], strict=True))
    assert retry_failed(space, opened()) == 1


def test_a_trial_that_failed_before_it_had_a_name_is_run_again_under_one(tmp_path: Path) -> None:
    space = space_of(tmp_path, NUMBERS, trials=1)
    study = open_study(space, journal_file(tmp_path / "study.journal"), "search")
    trial = study.ask()
    point = space(trial)
    study.tell(trial, state=TrialState.FAIL)
    assert retry_failed(space, study) == 1
    given = StudySearcher(space, study).suggest("again")
    assert isinstance(given, dict)
    assert given[POINT] == point and given[TRIAL_ID] == "0001-again"


def test_failed_members_of_a_population_are_not_run_again(tmp_path: Path) -> None:
    space = space_of(tmp_path, NUMBERS, scheduler={"kind": "pbt"}, trials=4)
    study = open_study(space, journal_file(tmp_path / "study.journal"), "search")
    with pytest.raises(UserError, match=r"--retry-failed: .* a population's failed members"):
        retry_failed(space, study)


def stopped_at(
    space: SearchSpace, folder: Path, values: list[float], first: int = 1
) -> list[int | None]:
    """The epochs at which trials of constant values are stopped, one after the other."""
    study = open_study(space, journal_file(folder / "study.journal"), "search")
    stops: list[int | None] = []
    for value in values:
        trial, stop = study.ask(), None
        space(trial)
        for epoch in range(first, space.config().schedule.epochs):
            trial.report(value, epoch)
            if trial.should_prune():
                stop = epoch
                break
        study.tell(trial, value if stop is None else None, TrialState.PRUNED if stop else None)
        stops.append(stop)
    return stops


def test_asha_halves_at_rungs_after_the_last_group_stage_has_started(tmp_path: Path) -> None:
    # Group stages start until epoch 40 of 60: rungs are at 45, 50 and 60.
    space = space_of(tmp_path, {START: {"int": [20, 40]}}, scheduler={"kind": "asha"})
    assert stopped_at(space, tmp_path, [0.5, 0.4, 0.6, 0.3, 0.55]) == [None, 45, None, 45, 50]


@pytest.mark.parametrize("first", [21, 30])
def test_trials_that_fork_at_different_epochs_are_compared_alike(
    tmp_path: Path, first: int
) -> None:
    space = space_of(tmp_path, {START: {"int": [20, 40]}}, scheduler={"kind": "asha"})
    stopped_at(space, tmp_path, [0.5], first=41)
    assert stopped_at(space, tmp_path, [0.4], first=first) == [45]


def test_the_median_rule_and_hyperband_stop_the_worse(tmp_path: Path) -> None:
    values = [0.5, 0.6, 0.55, 0.45, 0.1, 0.2, 0.7]
    for kind in ("median", "hyperband"):
        folder = tmp_path / kind
        folder.mkdir()
        space = space_of(folder, {START: {"int": [20, 40]}}, scheduler={"kind": kind})
        stops = stopped_at(space, folder, values)
        assert stops[4] is not None or stops[5] is not None
        assert stops[1] is None and stops[6] is None
        assert all(stop is None or stop >= 45 for stop in stops)


def test_the_median_rule_knows_nothing_of_what_was_before_its_clock(tmp_path: Path) -> None:
    space = space_of(tmp_path, {START: {"int": [20, 40]}}, scheduler={"kind": "median"})
    stopped_at(space, tmp_path, [0.5, 0.6, 0.55, 0.45])
    study = open_study(space, journal_file(tmp_path / "study.journal"), "search")
    trial = study.ask()
    for epoch, value in ((10, 0.9), (41, 0.1), (45, 0.1), (46, 0.1)):
        trial.report(value, epoch)
        assert trial.should_prune() == (epoch >= 45)


def test_no_scheduler_stops_nothing(tmp_path: Path) -> None:
    space = space_of(tmp_path, {START: {"int": [20, 40]}}, scheduler=None)
    with warnings.catch_warnings(action="error"):
        assert stopped_at(space, tmp_path, [0.5, 0.1]) == [None, None]
