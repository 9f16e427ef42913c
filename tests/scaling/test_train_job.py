from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import OutOfMemory, RunFailed, UserError
from conr_ray.scaling.cluster import room_for, start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.train_job import run_on_workers
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.tiny_runs import run_here, tiny_config, without_times

pytestmark = pytest.mark.slow
OFF = WandbSettings("off")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    start(WorkerResources(workers=2), dashboard=False)
    yield
    ray.shutdown()


def claimed(folder: Path, **changes: object) -> RunDirectory:
    directory = RunDirectory(folder)
    directory.claim(tiny_config(**changes), resume=False)
    return directory


def train_workers() -> list[psutil.Process]:
    # Ray names its processes after what they run.
    family = psutil.Process().children(recursive=True)
    # The last is Tune's: of a trial.
    names = ("RayTrainWorker", "_work_alone", "ImplicitFunc")
    return [p for p in family if any(name in " ".join(p.cmdline()) for name in names)]


@pytest.mark.parametrize(("workers", "stream"), [(1, "never"), (2, "never"), (2, "always")])
def test_ray_workers_train_as_one_process_does(tmp_path: Path, workers: int, stream: str) -> None:
    alone = without_times(run_here(tiny_config(), tmp_path / "alone"))
    config = tiny_config(data__stream=stream)
    directory = claimed(tmp_path / "ray", data__stream=stream)
    rows = list(run_on_workers(config, directory, WorkerResources(workers), OFF))
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for row, other in zip(rows, alone, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-3)
    assert (tmp_path / "ray" / "assignments.parquet").exists()
    # Once more: nothing is left to train, and the end is told again.
    (tmp_path / "ray" / "metrics.parquet").unlink()
    again = list(run_on_workers(config, directory, WorkerResources(workers), OFF))
    assert again == rows[-1:]
    assert directory.metric_rows() == rows


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_killed_worker_costs_no_more_than_the_epochs_since_the_checkpoint(
    tmp_path: Path, workers: int
) -> None:
    config = tiny_config(schedule__epochs=40)
    directory = RunDirectory(tmp_path)
    directory.claim(config, resume=False)
    rows = []
    for row in run_on_workers(config, directory, WorkerResources(workers), OFF):
        rows.append(row)
        if len(rows) == 5:
            os.kill(train_workers()[0].pid, signal.SIGKILL)
    assert [row["epoch"] for row in rows] == list(range(40))
    saved = directory.metric_rows()
    assert without_times(saved) == without_times(rows)


def test_a_worker_that_dies_too_often_ends_the_run_in_one_line(tmp_path: Path) -> None:
    config = tiny_config(schedule__epochs=40)
    directory = RunDirectory(tmp_path)
    directory.claim(config, resume=False)
    rows = run_on_workers(config, directory, WorkerResources(1), OFF, max_failures=1)
    with pytest.raises(RunFailed, match=r"^Ray gave up on the run: [^\n]+$"):
        for row in rows:
            if row["epoch"] in (2, 20):
                os.kill(train_workers()[0].pid, signal.SIGKILL)
    assert directory.checkpoint_epochs()[-1] < 40


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_an_error_of_the_run_reaches_the_caller_in_one_line_and_is_not_tried_again(
    tmp_path: Path, workers: int
) -> None:
    config = tiny_config(optim__lr=1e30)
    directory = RunDirectory(tmp_path)
    directory.claim(config, resume=False)
    with pytest.raises(
        RunFailed, match=r"the loss is nan at epoch 0, step \d+; .*none yet"
    ) as info:
        list(run_on_workers(config, directory, WorkerResources(workers), OFF))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_without_memory_is_told_in_one_line_and_not_tried_again(
    tmp_path: Path, workers: int
) -> None:
    config = tiny_config(bank__size=20_000_000_000_000)
    directory = RunDirectory(tmp_path)
    directory.claim(config, resume=False)
    with pytest.raises(OutOfMemory, match=r"^out of memory on the host: .* lower bank\.size=2000"):
        list(run_on_workers(config, directory, WorkerResources(workers), OFF))
    assert not directory.metric_rows()


def test_more_workers_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"workers=9999 needs 9999 x \(1 CPU\), the cluster.s nodes have room for"
    ):
        room_for(WorkerResources(workers=9999))


def test_the_train_command_runs_the_config_that_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conr_ray.train import main

    first = claimed(tmp_path / "first")
    config = f"{first.uri}/config.yaml"
    main(["--config", config, "--local", "--storage", str(tmp_path), "--name", "second"])
    out = capsys.readouterr().out
    assert "epoch 4/4" in out
    assert "NMI" in out
    second = RunDirectory(tmp_path / "second")
    assert second.read_config() == first.read_config()
    assert len(second.metric_rows()) == 4
