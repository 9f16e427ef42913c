"""Populations: who goes on from whom, and at which point, by their study alone."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from conr_ray.searching.population import Population
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study import open_study
from conr_ray.searching.study_searcher import EPOCHS, LEG, POINT, StudySearcher
from conr_ray.searching.study_storage import journal_file
from conr_ray.searching.trial_attributes import GENERATION, PARENT
from tests.search.test_space import FRACTION, K1, K2, LR, space_of

SEARCH = {
    K1: {"int": [5, 20]},
    K2: {"int": [1, K1]},
    FRACTION: {"float": [0.6, 1.0], "step": 0.05},
    LR: {"float": [1e-4, 1.0], "log": True},
    "neighborhood.kind": {"choice": ["contextual", "euclidean"]},
}


def population_space(folder: Path, kind: str = "pbt", **more: Any) -> SearchSpace:
    """Exchanges after 20, 30, 40 and 50 of 60 epochs; the group stage starts at 10."""
    given = {
        "preset": "digits",
        "metric": "nmi",
        "trials": 8,
        "fixed": {"schedule.epochs": 60, "schedule.group_start": 10},
        "scheduler": {"kind": kind, "grace_epochs": 20, "interval_epochs": 10},
        **more,
    }
    return space_of(folder, SEARCH, **given)


class World:
    """A search without training: states gain most where the learning rate is 0.01 and k1 is 12.

    Trials end one at a time, in any order.
    """

    def __init__(
        self, space: SearchSpace, folder: Path, seed: int = 0, failing: float = 0.0
    ) -> None:
        self.space, self.folder = space, folder
        self.failing = failing
        self.numbers = random.Random(seed)
        self.values: dict[str, float] = {}
        self.given: dict[str, dict[str, Any]] = {}
        self.restart()

    def restart(self) -> None:
        """As after a kill: all but the study is gone, and what ran is given once more."""
        self.study = open_study(self.space, journal_file(self.folder / "study.journal"), "search")
        self.searcher = StudySearcher(self.space, self.study)
        self.running: dict[str, dict[str, Any]] = {}

    def fill(self, slots: int) -> bool:
        """Start what can be started; whether there is more to come."""
        while len(self.running) < slots:
            name = f"tune{len(self.given)}-{self.numbers.random()}"
            given = self.searcher.suggest(name)
            if given == StudySearcher.FINISHED:
                return bool(self.running)
            if given is None:
                assert self.running, "everyone waits"
                return True
            assert isinstance(given, dict)
            self.running[name] = self.given[given["trial_id"]] = given
        return True

    def end_one(self) -> None:
        name = self.numbers.choice(sorted(self.running))
        given = self.running.pop(name)
        leg, point = given[LEG], given[POINT]
        value = self.values[leg["parent"]] if leg["parent"] else 0.0
        result = {}
        for epochs in range(leg["begin"] + 1, leg["end"] + 1):
            value += 1 / (1 + (math.log10(point[LR]) + 2) ** 2) + 0.1 / (1 + abs(point[K1] - 12))
            result = {EPOCHS: epochs, "nmi": value}
            assert not self.searcher.should_stop(name, result)
        if self.numbers.random() < self.failing:
            result["nmi"] = math.nan
        self.values[given["trial_id"]] = result["nmi"]
        self.searcher.on_trial_complete(name, result)

    def run(self, slots: int = 3, restart_each: int = 10**9) -> list[optuna.trial.FrozenTrial]:
        ended = 0
        while self.fill(slots):
            self.end_one()
            ended += 1
            if ended % restart_each == 0:
                self.restart()
        return self.study.get_trials()


def generations(trials: list[optuna.trial.FrozenTrial]) -> list[list[optuna.trial.FrozenTrial]]:
    newest = max(trial.user_attrs.get(GENERATION, 0) for trial in trials)
    return [
        [trial for trial in trials if trial.user_attrs.get(GENERATION, 0) == generation]
        for generation in range(newest + 1)
    ]


@pytest.mark.parametrize("kind", ["pbt", pytest.param("pb2", marks=pytest.mark.slow)])
def test_the_worst_quarter_goes_on_from_the_best(tmp_path: Path, kind: str) -> None:
    trials = World(population_space(tmp_path, kind), tmp_path).run()
    found = generations(trials)
    assert [len(legs) for legs in found] == [8] * 5
    for before, after in itertools.pairwise(found):
        ranked = [leg.number for leg in sorted(before, key=lambda leg: -(leg.value or 0))]
        parents = [leg.user_attrs[PARENT] for leg in after]
        # Those in between go on from themselves, at their own point.
        assert set(parents) == set(ranked[:6])
        assert sum(parent in ranked[:2] for parent in parents) == 4
        points = {leg.number: leg.params for leg in before}
        own = [leg for leg in after if leg.params == points[leg.user_attrs[PARENT]]]
        assert len(own) >= 6
        changed = [leg for leg in after if leg not in own]
        assert all(leg.user_attrs[PARENT] in ranked[:2] for leg in changed)
    assert {leg.state for legs in found[:-1] for leg in legs} == {TrialState.PRUNED}
    assert {leg.state for leg in found[-1]} == {TrialState.COMPLETE}


def test_all_points_are_of_the_space(tmp_path: Path) -> None:
    space = population_space(tmp_path, trials=16)
    for trial in World(space, tmp_path).run():
        for name in space.order:
            assert space.search[name].contains(trial.params[name], trial.params), name
        space.config(trial.params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_the_result_depends_neither_on_order_and_workers_nor_on_restarts(
    tmp_path: Path, kind: str
) -> None:
    found = []
    for seed, slots, restart_each in ((0, 1, 10**9), (1, 3, 10**9), (2, 5, 1), (3, 8, 3)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        trials = World(population_space(folder, kind), folder, seed).run(slots, restart_each)
        assert len(trials) == 40
        found.append([(t.user_attrs, t.params, t.value, t.state) for t in trials])
        for attributes, *_ in found[-1]:
            del attributes["trial_id"]
    assert found[0] == found[1] == found[2] == found[3]


def test_members_that_fail_are_replaced(tmp_path: Path) -> None:
    trials = World(population_space(tmp_path), tmp_path, failing=0.3).run()
    failed = {trial.number for trial in trials if trial.state == TrialState.FAIL}
    assert len(failed) > 4
    assert failed.isdisjoint(trial.user_attrs.get(PARENT) for trial in trials)
    assert len(trials) == 40


def test_a_population_that_fails_as_a_whole_ends(tmp_path: Path) -> None:
    world = World(population_space(tmp_path), tmp_path, failing=1.0)
    trials = world.run()
    assert len(trials) == 8
    assert world.searcher.suggest("another") == StudySearcher.FINISHED


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_a_population_gains_more_than_its_members_alone(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_value(name: str) -> float:
        values = []
        for seed in range(3):
            folder = tmp_path / f"{name} {seed}"
            folder.mkdir()
            trials = World(population_space(folder, kind, seed=seed), folder, seed).run()
            values += [trial.value or 0.0 for trial in trials[-8:]]
        return sum(values) / len(values)

    together = mean_value("together")
    monkeypatch.setattr(
        Population, "_children", lambda _, legs, __: ((leg.number, leg.params) for leg in legs)
    )
    assert together > 1.1 * mean_value("alone")
