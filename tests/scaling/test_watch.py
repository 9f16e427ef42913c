from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.cluster import start
from conr_ray.scaling.pulse import Beat
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.train_job import run_on_workers
from conr_ray.scaling.watch import Limits, Watch
from tests.scaling.test_train_job import OFF, train_workers
from tests.tiny_runs import run_here, tiny_config, without_times


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
    assert any(line.endswith(": it is ended, and all workers start again") for line in named)
    assert not psutil.pid_exists(stopped)


class _Judged(Watch):
    """A watch that is given the beats, at times that a test chooses."""

    def __init__(self, limits: Limits) -> None:
        self.lines: list[str] = []
        super().__init__(limits, self.lines.append)

    def at(self, now: float, *beats: tuple[int, int, str, float]) -> list[str]:
        """Lines told about (rank, phases, phase, age)."""
        self.lines.clear()
        made = [
            (Beat(rank, "10.0.0.1", "gone", 7 + rank, phases, phase), age)
            for rank, phases, phase, age in beats
        ]
        self._judge(made, now)
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


def test_a_look_does_not_wait(tmp_path: Path) -> None:
    watch = Watch(Limits(silent_s=0.4), print)
    began = time.monotonic()
    for _ in range(100):
        watch.look()
    assert time.monotonic() - began < 5
