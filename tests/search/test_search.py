from __future__ import annotations

import io
import json
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
import torch
import yaml
from optuna.trial import TrialState
from rich.console import Console

from conr_ray.config import from_yaml, load_config, load_preset
from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import Span
from conr_ray.engine.trunk_store import open_trunks
from conr_ray.errors import RunFailed
from conr_ray.scaling.actor_locks import ActorLocks
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from conr_ray.searching.study import open_study
from conr_ray.searching.study_storage import journal_file
from conr_ray.searching.trial_table import Cost, Trial
from conr_ray.searching.wandb_search import log_search
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_file import history
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.gloo_workers import run_workers
from tests.tiny_runs import TINY, run_here, without_times
from tests.tracking import offline_file
from tests.waiting import HANG_S

pytestmark = pytest.mark.slow
OFF = WandbSettings("off")

K_FIELDS: dict[str, Any] = {
    "neighborhood.k1": {"int": [5, 20]},
    "neighborhood.k2": {"int": [1, "neighborhood.k1"]},
}
SPACE: dict[str, Any] = {
    "preset": "digits",
    "metric": "nmi",
    "trials": 3,
    "fixed": {name: v for name, v in TINY.items() if name != "schedule.group_start"},
    "search": {
        **K_FIELDS,
        "schedule.group_start": {"int": [1, 3]},
    },
    "first": [{"schedule.group_start": 2}],
}


def space_file(folder: Path, **changes: Any) -> Path:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SPACE, **changes}))
    return file


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    start(WorkerResources(workers=2), dashboard=True)
    yield
    ray.shutdown()


def search(
    folder: Path,
    space: SearchSpace,
    num_trials: int,
    workers: int = 1,
    shared: bool = False,
    wandb: WandbSettings = OFF,
) -> tuple[list[Trial], optuna.Study, SearchDirectory]:
    directory = SearchDirectory(Folder(folder))
    directory.claim(space, resume=folder.exists())
    place = f"{folder}/trunks" if shared else None
    trunks = open_trunks(place, space.group_starts, ActorLocks())
    trials = run_search(
        space,
        directory,
        WorkerResources(workers),
        wandb,
        Console(file=io.StringIO()),
        num_trials=num_trials,
        fingerprint=open_data(space.config().data).fingerprint,
        trunks=trunks,
    )
    return trials, directory.open_study(space), directory


def test_a_search_ends_with_a_table_and_a_best_config_that_trains_alike(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, scheduler=None))
    trials, study, directory = search(tmp_path / "search", space, 3)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    first = study.trials[0].params
    assert (first["neighborhood.k1"], first["neighborhood.k2"]) == (10, 2)

    table = pq.read_table(Path(directory.uri) / "trials.parquet").to_pylist()
    assert [row["trial_id"] for row in table] == [trial.trial_id for trial in trials]
    assert [row["nmi"] for row in table] == sorted((row["nmi"] for row in table), reverse=True)
    assert {row["epochs"] for row in table} == {4}
    assert study.best_trial.user_attrs["trial_id"] == trials[0].trial_id
    assert study.best_value == table[0]["nmi"]

    best = load_config(Path(directory.uri) / "best.yaml")
    rows = run_here(best, tmp_path / "again")
    run = RunDirectory(Path(directory.uri) / "trials" / trials[0].trial_id)
    assert run.read_config() == best
    assert without_times(rows) == without_times(run.metric_rows())
    assert (Path(directory.uri) / "trials" / trials[0].trial_id / "assignments.parquet").exists()

    # More trials on a finished search: the old ones stay, new ones are drawn.
    more, study, _ = search(tmp_path / "search", space, 5)
    assert len(more) == 5
    assert {t.trial_id for t in trials} < {t.trial_id for t in more}
    points = [tuple(sorted(t.params.items())) for t in study.trials]
    assert len(set(points)) > 3


def test_trials_that_share_a_trunk_are_those_that_do_not(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, scheduler=None, sampler="random"))
    results = {}
    for shared in (True, False):
        folder = tmp_path / f"shared {shared}"
        trials, study, _ = search(folder, space, 3, shared=shared)
        names = [trial.user_attrs["trial_id"] for trial in study.trials]
        rows = [RunDirectory(folder / "trials" / name).metric_rows() for name in names]
        results[shared] = [without_times(r) for r in rows], [t.params for t in study.trials]
        cost = Cost.of(trials)
        assert cost.unshared_epochs == 12
        if shared:
            starts = [trial.params["schedule.group_start"] for trial in study.trials]
            assert cost.epochs == max(starts) + sum(4 - start for start in starts)
            assert {trial.origin.trunk for trial in trials if trial.origin} == {
                path.name for path in (folder / "trunks").iterdir() if path.is_dir()
            }
        else:
            assert cost.epochs == 12
    assert results[True] == results[False]


@pytest.mark.long
def test_trials_from_other_weights_have_other_trunks(tmp_path: Path) -> None:
    old = tmp_path / "old"
    run_here(load_preset("digits", {**TINY, "seed": 1}), old)
    choice = {"choice": [None, str(old)]}
    fields = {**K_FIELDS, "model.init": choice}
    fixed = {**TINY, "schedule.group_start": 2}
    file = space_file(tmp_path, search=fields, fixed=fixed, trials=6, first=[{"model.init": None}])
    trials, _, directory = search(tmp_path, load_space(str(file)), 6, shared=True)
    starts = {(t.point["model.init"], t.origin.trunk) for t in trials if t.origin is not None}
    assert len(trials) == 6 and {init for init, _ in starts} == {None, str(old)}
    assert len(starts) == len({trunk for _, trunk in starts}) == 2
    for trial in trials:
        record = Folder(f"{directory.uri}/trials/{trial.trial_id}").read_json(
            "initial_weights.json"
        )
        assert (record or {}).get("source") == trial.point["model.init"]


def test_early_stopping_is_told_pruned_and_keeps_the_best(tmp_path: Path) -> None:
    space = load_space(
        space_file(
            tmp_path,
            search={"optim.lr": {"float": [1e-5, 0.2], "log": True}},
            first=[{"optim.lr": 0.1}, {"optim.lr": 1e-5}],
            fixed=TINY,
            metric="silhouette",
            scheduler={"grace_epochs": 1},
        )
    )
    trials, study, _ = search(tmp_path / "search", space, 6)
    states = [t.state for t in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    stopped = [t for t in trials if t.state == "stopped"]
    assert all(t.epochs < 4 for t in stopped)
    assert trials[0].state == "complete"
    # The value of a stopped trial is its last one.
    for trial in study.trials:
        assert trial.value == trial.intermediate_values[trial.last_step]


@pytest.mark.long
def test_stopped_trials_of_two_workers_are_whole_in_wandb(tmp_path: Path) -> None:
    space = load_space(
        space_file(
            tmp_path,
            search={"optim.lr": {"choice": [0.1, 1e-5]}},
            first=[{"optim.lr": 0.1}, {"optim.lr": 1e-5}, {"optim.lr": 1e-5}],
            # So many that the stop comes before the last.
            fixed={**TINY, "schedule.epochs": 40},
            metric="silhouette",
            scheduler={"kind": "asha", "grace_epochs": 1},
        )
    )
    offline = WandbSettings("offline")
    trials, _, directory = search(tmp_path / "search", space, 3, workers=2, wandb=offline)
    log_search(space, directory, trials, offline, workers=2)
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert stopped and all(trial.epochs < 40 for trial in stopped)
    for trial in trials:
        folder = tmp_path / "search" / "trials" / trial.trial_id
        files = sorted(folder.glob(f"wandb/offline-run-*/run-{trial.trial_id}.wandb"))
        rows = [row for file in files for row in history(file)]
        assert sorted(row["epoch"] for row in rows) == list(range(trial.epochs))
        (exit,) = (r.exit for r in offline_file.ended(files[-1]) if r.HasField("exit"))
        assert exit.exit_code == 0


def test_a_trial_that_fails_is_told_fail_and_the_search_goes_on(tmp_path: Path) -> None:
    space = load_space(
        space_file(
            tmp_path,
            search={"optim.lr": {"choice": [0.1, 1e30]}},
            first=[{"optim.lr": 1e30}, {"optim.lr": 0.1}],
            fixed=TINY,
            scheduler=None,
        )
    )
    trials, study, directory = search(tmp_path / "search", space, 2)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [t.state for t in trials] == ["complete", "failed"]
    failed = RunDirectory(Path(directory.uri) / "trials" / trials[1].trial_id)
    with pytest.raises(RunFailed, match="the loss is"):
        failed.raise_failure()


def test_a_search_of_failures_only_says_so(tmp_path: Path) -> None:
    space = load_space(
        space_file(
            tmp_path,
            search={"optim.lr": {"choice": [1e30, 1e31]}},
            first=[{"optim.lr": 1e30}],
            fixed=TINY,
        )
    )
    with pytest.raises(RunFailed, match="no trial trained all its epochs"):
        search(tmp_path / "search", space, 1)


@pytest.mark.parametrize(
    ("kind", "size", "workers", "exchanges"),
    [
        ("pbt", 4, 1, 2),
        pytest.param("pb2", 4, 1, 2, marks=pytest.mark.long),
        pytest.param("pbt", 2, 2, 1, marks=pytest.mark.long),
    ],
)
def test_a_population_hands_states_on(
    tmp_path: Path, kind: str, size: int, workers: int, exchanges: int
) -> None:
    num_epochs = 3 + exchanges
    space = load_space(
        space_file(
            tmp_path,
            search={**K_FIELDS, "optim.group_stage_lr_factor": {"float": [0.01, 1], "log": True}},
            first=None,
            fixed={**TINY, "schedule.epochs": num_epochs, "evaluation.neighbors": False},
            scheduler={"kind": kind, "grace_epochs": 3, "interval_epochs": 1},
            trials=size,
        )
    )
    trials, study, directory = search(tmp_path / "search", space, size, workers, shared=True)
    assert len(trials) == (1 + exchanges) * size
    assert [trial.state for trial in trials[:size]] == ["complete"] * size
    by_number = {trial.number: trial for trial in trials}
    runs = {t.number: RunDirectory(Path(directory.uri) / "trials" / t.trial_id) for t in trials}
    crossed = 0
    for trial in trials:
        rows = runs[trial.number].metric_rows()
        begin, epochs = trial.inherited_epochs, trial.epochs
        assert [row["epoch"] for row in rows] == list(range(epochs))
        assert trial.values == (rows[-1]["nmi"],)
        if trial.parent is None:
            assert (begin, epochs) == (0, 3)
            assert trial.origin is not None and trial.origin.epoch == 2
            continue
        assert (begin, epochs) in ((3, 4), (4, 5))
        assert by_number[trial.parent].state == "continued"
        assert rows[:begin] == runs[trial.parent].metric_rows()
        crossed += trial.point != by_number[trial.parent].point
        if workers == 1:
            # What the leg trained is what anyone trains from the parent's checkpoint.
            alone = RunDirectory(tmp_path / f"alone {trial.number}")
            config = space.config(trial.point)
            span = Span((runs[trial.parent], begin), None if epochs == num_epochs else epochs)
            images = open_data(config.data)
            again = train(config, images, alone, Observers(), torch.device("cpu"), span)
            assert without_times(again) == without_times(rows)
    # One at each exchange.
    assert crossed == exchanges
    assert Cost.of(trials).epochs == 2 + size * (1 + exchanges)
    assert study.best_trial.user_attrs["trial_id"] == trials[0].trial_id

    # Nothing is left to do, and nothing is done again.
    repeated, _, _ = search(tmp_path / "search", space, size, workers, shared=True)
    assert repeated == trials


def _train(text: str, folder: str) -> None:
    run_here(from_yaml(text, "the trial's config"), Path(folder))


@pytest.mark.long
def test_trials_of_two_workers_share_a_trunk_of_real_images_and_are_those_that_do_not(
    tmp_path: Path, shared_data: Path
) -> None:
    space = load_space(
        space_file(
            tmp_path,
            preset="cifar20",
            fixed={
                "data.source": "parquet",
                "data.path": str(shared_data / "cifar100.parquet"),
                "data.limit": 1024,
                "model.backbone": "convnet",
                "model.widths": [8, 16],
                "model.head_hidden_dim": 64,
                "model.embedding_dim": 32,
                "schedule.epochs": 3,
                "schedule.warmup_epochs": 0,
                "schedule.relax_epochs": 0,
                "evaluation.every": 1,
            },
            search={**K_FIELDS, "schedule.group_start": {"int": [1, 2]}},
            first=[{"schedule.group_start": 1}, {"schedule.group_start": 2}],
            scheduler=None,
        )
    )
    trials, study, directory = search(tmp_path / "search", space, 2, workers=2, shared=True)
    assert [trial.state for trial in trials] == ["complete"] * 2
    assert all(0 < (trial.figures["nmi"] or 0) < 1 for trial in trials)
    # The trunk's two epochs, two after the first and one after the second.
    assert Cost.of(trials).epochs == 5
    last = study.trials[1]
    run = RunDirectory(Path(directory.uri) / "trials" / last.user_attrs["trial_id"])
    assert [row["stage"] for row in run.metric_rows()] == ["instance", "instance", "group"]
    summary = run.read_text(f"{run.checkpoint_name(3)}/summary.json")
    assert json.loads(summary or "")["workers"] == 2
    run_workers(_train, 2, space.config(last.params).to_yaml(), str(tmp_path / "here"))
    here = RunDirectory(tmp_path / "here").metric_rows()
    assert without_times(run.metric_rows()) == without_times(here)


def start_search_and_stop(command: list[str], folder: Path, how: signal.Signals) -> int:
    """Run the command until its trials have trained some epochs more, then stop it."""
    trained = sum(len(RunDirectory(f).metric_rows()) for f in folder.glob("trials/*"))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = [psutil.Process(driver.pid)]
    deadline = time.monotonic() + HANG_S
    while sum(len(RunDirectory(f).metric_rows()) for f in folder.glob("trials/*")) < trained + 8:
        assert time.monotonic() < deadline, "the trials do not start"
        assert driver.poll() is None, "the search ended early"
        time.sleep(0.1)
    if how == signal.SIGKILL:
        # As when the machine is lost: Ray's own processes do not live on to tidy up.
        family += family[0].children(recursive=True)
    for process in family:
        if process.is_running():
            process.send_signal(how)
    return driver.wait(timeout=HANG_S)


@pytest.mark.long
def test_a_search_that_is_interrupted_and_then_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    space = load_space(
        space_file(
            tmp_path, scheduler=None, fixed={**SPACE["fixed"], "schedule.epochs": 50}, trials=2
        )
    )
    command = [sys.executable, "-m", "conr_ray.tune", "--space", str(tmp_path / "space.yaml")]
    command += ["--storage", str(tmp_path), "--name", "search"]
    folder = tmp_path / "search"
    # As Ctrl-C does, but for the status.
    assert start_search_and_stop(command, folder, signal.SIGTERM) == 143
    page = (folder / "report.html").read_text()
    assert "running:" not in page.partition("<main")[0] and "interrupted" in page
    first = {trial.name for trial in folder.glob("trials/*")}
    command.append("--resume")
    assert start_search_and_stop(command, folder, signal.SIGKILL) == -signal.SIGKILL

    resumed = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert resumed.returncode == 0, resumed.stderr
    study = open_study(space, journal_file(folder / "study.journal"), "search")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    trials = {trial.name for trial in folder.glob("trials/*")}
    assert first <= trials
    assert len(trials) == 2
    for trial in trials:
        rows = RunDirectory(folder / "trials" / trial).metric_rows()
        assert [row["epoch"] for row in rows] == list(range(50))
