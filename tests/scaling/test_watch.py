from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from rich.console import Console

from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.method.place import UPLOAD, place
from conr_ray.scaling.abandoned import free_abandoned
from conr_ray.scaling.cluster import start
from conr_ray.scaling.pulse import Beat
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.train_job import run_on_workers
from conr_ray.scaling.watch import Limits, Watch
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.storage.files import Folder
from tests.scaling.test_train_job import OFF, train_workers
from tests.tiny_runs import TINY, run_here, tiny_config, without_times
from tests.waiting import until


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    start(WorkerResources(workers=2), dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_stopped_worker_is_named_and_ended_and_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path, count: int
) -> None:
    config = tiny_config(schedule__epochs=40)
    undisturbed = without_times(run_here(config, tmp_path / "alone"))
    directory = RunDirectory(tmp_path / "run")
    directory.claim(config, resume=False)
    told: list[str] = []
    rows, stopped = [], 0
    for row in run_on_workers(
        config,
        directory,
        WorkerResources(count),
        OFF,
        limits=Limits(silent_s=6, end_s=20),
        tell=told.append,
    ):
        rows.append(row)
        if len(rows) == 5:
            stopped = train_workers()[-1].pid
            os.kill(stopped, signal.SIGSTOP)
    assert [row["epoch"] for row in rows] == list(range(40))
    for row, other in zip(without_times(rows), undisturbed, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-2)
    named = [line for line in told if f"(process {stopped} on " in line]
    assert any(line.startswith("no sign of life for ") for line in named)
    assert any(line.endswith("; ended after 20 s") for line in named)
    assert any(
        line.endswith(": ended, and started again from the newest checkpoint") for line in named
    )
    assert not psutil.pid_exists(stopped)


@pytest.mark.slow
@pytest.mark.long
def test_a_stopped_trial_is_named_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    space = SearchSpace.model_validate(
        {
            "preset": "digits",
            "metric": "silhouette",
            "trials": 2,
            "fixed": {**TINY, "schedule.epochs": 20},
            "search": {"seed": {"choice": [0, 1]}},
            "sampler": "grid",
            "scheduler": None,
        }
    )
    directory = SearchDirectory(Folder(tmp_path / "search"))
    directory.claim(space, resume=False)
    stopped: list[int] = []

    def stop_at_first_news() -> None:
        if not stopped and list(tmp_path.glob("search/trials/*/checkpoints/*")):
            [actor] = train_workers()
            actor.suspend()
            stopped.append(actor.pid)

    told = io.StringIO()
    trials = run_search(
        space,
        directory,
        WorkerResources(1),
        OFF,
        Console(file=told, width=500),
        num_trials=2,
        fingerprint=open_data(space.config().data).fingerprint,
        max_concurrent=1,
        on_news=stop_at_first_news,
        limits=Limits(silent_s=10, end_s=45),
    )
    assert [trial.state for trial in trials] == ["complete", "complete"]
    for trial in trials:
        rows = RunDirectory(f"{directory.uri}/trials/{trial.trial_id}").metric_rows()
        assert [row["epoch"] for row in rows] == list(range(20))
    named = [line for line in told.getvalue().splitlines() if f"(process {stopped[0]} on " in line]
    assert all(" of trial 000" in line for line in named)
    assert any(line.startswith("no sign of life for ") for line in named)
    assert any(line.endswith("; ended after 45 s") for line in named)
    assert named[-1].endswith(": ended, and started again from the newest checkpoint")
    assert not psutil.pid_exists(stopped[0])


class _Judged(Watch):
    """A watch that is given the beats, at times that a test chooses."""

    def __init__(self, limits: Limits, run: str = "") -> None:
        self.run = run
        self.lines: list[str] = []
        super().__init__(limits, self.lines.append)

    def at(self, now: float, *beats: tuple[int, int, str, float]) -> list[str]:
        """Lines told about (rank, phases, phase, age)."""
        self.lines.clear()
        made = [
            (Beat(self.run, rank, "10.0.0.1", "gone", 7 + rank, phases, phase), age)
            for rank, phases, phase, age in beats
        ]
        self._judge(made, now, {self.run})
        return list(self.lines)


def test_the_worker_that_others_wait_for_is_named_once() -> None:
    watch = _Judged(Limits(silent_s=10, end_s=None))
    for now in range(100):
        assert watch.at(now, (0, 5 + now, "views", 1), (1, 5 + now, "views", 1)) == []
    waiting = (0, 106, "backward", 1), (1, 105, "views", 1)
    assert watch.at(100, *waiting) == watch.at(119, *waiting) == []
    assert watch.at(121, *waiting) == [
        "no progress for 21 s; the others wait for worker 1 (process 8 on 10.0.0.1, views)"
    ]
    assert watch.at(140, *waiting) == []
    assert watch.at(150, (0, 107, "views", 1), (1, 107, "views", 1)) == [
        "workers are at work again"
    ]


def test_what_took_long_before_may_take_long_again() -> None:
    watch = _Judged(Limits(silent_s=1, end_s=None))
    watch.at(0, (0, 1, "views", 0))
    assert watch.at(100, (0, 1, "evaluation", 0)) != []
    watch.at(101, (0, 2, "views", 0))
    assert watch.at(1000, (0, 2, "evaluation", 0)) == []
    assert watch.at(1200, (0, 2, "evaluation", 0)) != []


def test_opening_data_is_no_silence_but_a_silent_process_is() -> None:
    watch = _Judged(Limits(silent_s=10, end_s=None))
    watch.at(0, (0, 0, "not training yet", 1), (1, 0, "not training yet", 1))
    assert watch.at(300, (0, 0, "not training yet", 1), (1, 0, "not training yet", 1)) == []
    [line] = watch.at(301, (0, 0, "not training yet", 1), (1, 0, "not training yet", 12))
    assert line.startswith("no sign of life for 12 s from worker 1 (process 8 on 10.0.0.1")
    [line] = watch.at(302, (0, 0, "not training yet", 11), (1, 0, "not training yet", 13))
    assert line == (
        "no sign of life for 13 s from any worker: Ray starts them again, or waits for a node"
    )


def test_trials_are_judged_each_by_itself_while_they_run() -> None:
    watch = Watch(Limits(silent_s=10, end_s=None), (lines := []).append)
    beats = {run: Beat(run, 0, "10.0.0.1", "gone", 7, 1, "views") for run in ("a", "b", "c")}
    for now in (0.0, 15.0, 21.0):
        beats["b"] = replace(beats["b"], phases=beats["b"].phases + 1)
        aged = [(beats["a"], 1.0), (beats["b"], 1.0), (beats["c"], 11.0)]
        watch._judge(aged, now, {"a", "b"})
    assert lines == ["no progress for 21 s of worker 0 of trial a (process 7 on 10.0.0.1, views)"]
    # One that is tried again begins anew.
    watch._judge([(beats["a"], 1.0)], 22.0, set())
    watch._judge([(beats["a"], 1.0)], 23.0, {"a"})
    watch._judge([(beats["a"], 11.0)], 24.0, {"a"})
    watch._judge([(beats["a"], 1.0)], 25.0, {"a"})
    assert [line.partition(" (")[0] for line in lines[1:]] == [
        "no sign of life for 11 s from worker 0 of trial a",
        "workers of trial a are at work again",
    ]


def test_a_driver_that_was_held_up_blames_nobody() -> None:
    watch = _Judged(Limits(silent_s=10, end_s=None))
    watch.at(0, (0, 1, "views", 0))
    watch._last_look -= 11
    watch.look()
    assert watch.at(1000, (0, 1, "views", 0)) == []
    assert watch.at(2000, (0, 1, "views", 0)) != []


def test_what_is_sent_elsewhere_may_take_an_hour() -> None:
    watch = _Judged(Limits(silent_s=10, end_s=1800))
    watch.at(0, (0, 9, UPLOAD, 0))
    assert watch.at(3600, (0, 9, UPLOAD, 0)) == []
    assert watch.at(3700, (0, 9, UPLOAD, 0)) != []


def test_a_process_is_watched_while_it_trains_one_run_after_another() -> None:
    watch = Watch(Limits(), print)
    place.phases = 7
    for run in ("first", "second"):
        with watch.pulse.of(run).beating():
            [(beat, age)] = until(lambda: ray.get(watch.pulse.keeper.latest.remote())[0], 60)
            assert (beat.run, beat.rank, beat.pid, beat.phases) == (run, 0, os.getpid(), 0)
            assert age < 60
        assert ray.get(watch.pulse.keeper.latest.remote()) == ([], [])


def test_what_a_worker_says_is_told_once() -> None:
    lines: list[str] = []
    watch = Watch(Limits(silent_s=0.4), lines.append)
    watch.pulse.say("waiting")

    def told() -> list[str]:
        watch.look()
        return lines

    assert until(told, 60) == ["waiting"]
    for _ in range(3):
        time.sleep(watch.pulse.every_s)
        assert told() == ["waiting"]


def test_a_look_does_not_wait(tmp_path: Path) -> None:
    watch = Watch(Limits(silent_s=0.4), print)
    began = time.monotonic()
    for _ in range(100):
        watch.look()
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_cores_that_a_dead_actor_has_taken_are_free_again() -> None:
    class Controller:
        def take(self, num_cores: int) -> None:
            ray.get(placement_group([{"CPU": 1}] * num_cores).ready())

    actor: Any = ray.remote(num_cpus=0)(Controller)
    dead, alive = actor.remote(), actor.remote()
    ray.get([dead.take.remote(1), alive.take.remote(1)])
    own = placement_group([{"CPU": 1}])
    assert free_abandoned() == 0
    ray.kill(dead)
    until(free_abandoned, pause_s=0.2)
    # Who waits for the core gets it.
    ray.get(own.ready())
    assert free_abandoned() == 0
    remove_placement_group(own)
    ray.kill(alive)
    until(free_abandoned, pause_s=0.2)
