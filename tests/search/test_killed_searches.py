"""Real searches whose processes are killed at random moments end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.tracking.wandb_file import history
from tests.tiny_runs import TINY
from tests.tracking import offline_file
from tests.waiting import HANG_S

pytestmark = pytest.mark.slow
EPOCHS = 30
KEY = "0123456789abcdef" * 3
LONG = pytest.mark.long


class Search:
    """A `tune` command that is started anew, with --resume, whenever its driver was killed."""

    def __init__(self, folder: Path, workers: int, trials: int) -> None:
        fixed = {**TINY, "schedule.epochs": EPOCHS, "evaluation.neighbors": False}
        del fixed["schedule.group_start"]
        space = {
            "preset": "digits",
            "metric": "nmi",
            "trials": trials,
            "scheduler": None,
            "fixed": fixed,
            "search": {
                "neighborhood.k1": {"int": [5, 20]},
                "schedule.group_start": {"int": [10, 20], "step": 5},
            },
            "first": [{"schedule.group_start": 15}],
        }
        (folder / "space.yaml").write_text(yaml.safe_dump(space))
        self.folder = folder / "search"
        self._command = [sys.executable, "-m", "conr_ray.tune"]
        self._command += ["--space", str(folder / "space.yaml"), "--workers", str(workers)]
        self._command += ["--storage", str(folder), "--name", "search"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._command, "--resume"] if self.folder.exists() else self._command
        environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_API_KEY": KEY}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )

    def epochs_trained(self) -> int:
        folders = [*self.folder.glob("trials/*"), *self.folder.glob("trunks/*/")]
        return sum(len(RunDirectory(folder).metric_rows()) for folder in folders)

    def train_for(self, epochs: int) -> bool:
        """Wait until so many more epochs are trained; False where the search ends first."""
        assert self._process is not None
        goal, deadline = self.epochs_trained() + epochs, time.monotonic() + HANG_S
        while self.epochs_trained() < goal:
            assert time.monotonic() < deadline, "the search does not go on"
            if self._process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def kill(self, what: str) -> None:
        """Kill the driver with all it started, as when its machine is lost, or one process."""
        assert self._process is not None
        driver = psutil.Process(self._process.pid)
        family = driver.children(recursive=True)
        if what == "driver":
            for process in [driver, *family]:
                if process.is_running():
                    process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=HANG_S)
            self.start()
            return
        named = [p for p in family if p.is_running() and what in " ".join(p.cmdline())]
        assert named, f"no {what} to kill"
        random.choice(named).send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Leave no process behind, however the test went."""
        assert self._process is not None
        if self._process.poll() is None:
            driver = psutil.Process(self._process.pid)
            for process in [*driver.children(recursive=True), driver]:
                if process.is_running():
                    process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=HANG_S)

    def wait(self) -> int:
        """The status that it ends with."""
        assert self._process is not None
        return self._process.wait(timeout=HANG_S)

    def finish(self) -> None:
        assert self.wait() == 0


def check_ended_well(folder: Path, trials: int) -> None:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=storage)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * trials
    names = [t.user_attrs["trial_id"] for t in study.trials]
    assert sorted(names) == sorted(f.name for f in (folder / "trials").iterdir())
    for trial in study.trials:
        rows: list[Any] = RunDirectory(folder / "trials" / names[trial.number]).metric_rows()
        assert [row["epoch"] for row in rows] == list(range(EPOCHS))
        assert trial.value == rows[-1]["nmi"]
        values = {row["epoch"] + 1: row["nmi"] for row in rows}
        assert all(values[step] == value for step, value in trial.intermediate_values.items())
    table = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["complete"] * trials
    # Optuna alone names the same best trial.
    assert table[0]["trial_id"] == study.best_trial.user_attrs["trial_id"]


def check_wandb(folder: Path, trials: int) -> None:
    """W&B's files hold every trial once, every epoch once, figures, and the search itself."""
    for trial in (folder / "trials").iterdir():
        files = sorted(trial.glob(f"wandb/offline-run-*/run-{trial.name}.wandb"))
        rows = [row for file in files for row in history(file)]
        assert sorted(row["epoch"] for row in rows) == list(range(EPOCHS))
        own: list[Any] = RunDirectory(trial).metric_rows()
        nmi = {row["epoch"]: row["nmi"] for row in rows}
        assert all(nmi[row["epoch"]] == row["nmi"] for row in own)
        last = next(row for row in rows if row["epoch"] == EPOCHS - 1)
        assert {"figures/map", "tables/neighbors"} <= {n.rpartition("/")[0] for n in last}
        run = offline_file.run(files[-1])
        assert (run.run_group, run.job_type) == ("search", "trial")
        stored = offline_file.config(files[-1])
        config = RunDirectory(trial).read_config()
        assert config is not None
        assert stored["neighborhood"]["k1"] == config.neighborhood.k1
    (file,) = folder.glob("wandb/offline-run-*/run-search.wandb")
    offline_file.ended(file)
    run = offline_file.run(file)
    assert (run.run_group, run.job_type) == ("search", "search")
    assert offline_file.config(file)["space"]["search"]["neighborhood.k1"] == {"int": [5, 20]}
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/search/trials_*.table.json")
    assert len(json.loads(table.read_text())["data"]) == trials
    secret = KEY.encode()
    assert not any(secret in p.read_bytes() for p in folder.glob("**/wandb/**/*") if p.is_file())


@pytest.fixture
def another_cluster() -> Iterator[None]:
    """Someone else's Ray on the same machine."""
    start(WorkerResources(), dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("another_cluster")
@pytest.mark.parametrize(
    ("workers", "trials", "kills"),
    [
        pytest.param(1, 3, ["ImplicitFunc", "driver"], marks=LONG),
        (2, 1, ["RayTrainWorker", "driver", "ImplicitFunc"]),
        pytest.param(1, 4, [*["driver", "ImplicitFunc"] * 2, "ImplicitFunc", "driver"], marks=LONG),
        pytest.param(2, 4, ["RayTrainWorker", "driver"] * 2 + ["ImplicitFunc"], marks=LONG),
    ],
)
def test_no_trial_is_lost_or_counted_twice(
    tmp_path: Path, workers: int, trials: int, kills: list[str]
) -> None:
    search = Search(tmp_path, workers, trials)
    search.start()
    try:
        for what in kills:
            most = 20 * trials // len(kills)
            assert search.train_for(random.randrange(1, most)), "it ended before the last kill"
            search.kill(what)
        search.finish()
    finally:
        search.end()
    check_ended_well(search.folder, trials)
    check_wandb(search.folder, trials)


@pytest.mark.long
@pytest.mark.parametrize(("workers", "trials"), [(1, 12), (2, 3)])
def test_a_search_whose_ray_dies_ends_and_goes_on_where_it_was(
    tmp_path: Path, workers: int, trials: int
) -> None:
    search = Search(tmp_path, workers, trials)
    search.start()
    try:
        assert search.train_for(10)
        search.kill("raylet/raylet")
        assert search.wait() == 1
        search.start()
        search.finish()
    finally:
        search.end()
    check_ended_well(search.folder, trials)


@pytest.mark.long
def test_a_trial_that_may_not_be_tried_again_fails_until_asked_for(tmp_path: Path) -> None:
    search = Search(tmp_path, workers=1, trials=2)
    search._command += ["--max-retries", "0"]
    search.start()
    try:
        assert search.train_for(10)
        search.kill("ImplicitFunc")
        search.finish()
        table = pq.read_table(search.folder / "trials.parquet").to_pylist()
        assert [row["state"] for row in table] == ["complete", "failed"]
        assert table[1]["failure"] == "its processes died more often than --max-retries allows"
        search._command.append("--retry-failed")
        search.start()
        search.finish()
    finally:
        search.end()
    again = pq.read_table(search.folder / "trials.parquet").to_pylist()
    assert [row["state"] for row in again] == ["complete"] * 2
    names = {row["trial_id"] for row in table}
    assert {row["trial_id"] for row in again} == names
    assert {folder.name for folder in (search.folder / "trials").iterdir()} == names
