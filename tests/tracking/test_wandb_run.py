from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

import conr_ray.tracking.wandb_run as wandb_run
from conr_ray.config import RunConfig
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.tracking.wandb_file import history, logged_epochs
from conr_ray.tracking.wandb_media import DrawingBudget
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_settings import WandbSettings, wandb_mode
from tests.tiny_runs import run_here, tiny_config
from tests.tracking import offline_file
from tests.waiting import HANG_S

KEY = "0123456789abcdef" * 3
FIGURES = {"figures/neighbors", "figures/map", "figures/confusion", "figures/clusters"}
TABLES = {"tables/neighbors", "tables/clusters", "tables/confusion"}


def settings(folder: Path, group: str | None = "a search") -> WandbSettings:
    return WandbSettings("offline").for_run("0003-abcd", group=group, run_uri=str(folder))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-0003-abcd.wandb"))


def logged_rows(folder: Path) -> list[dict[str, Any]]:
    """Of all files of the run, in order, as `wandb sync` takes them."""
    return [row for file in files(folder) for row in history(file)]


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_an_offline_run_holds_every_epoch_once_with_config_group_and_figures(
    tmp_path: Path,
) -> None:
    config = tiny_config(tracking__checkpoint_artifact=True)
    RunDirectory(tmp_path).claim(config, resume=False)
    rows = run_here(config, tmp_path, open_wandb(settings(tmp_path, group=None), config))
    (file,) = files(tmp_path)
    records = offline_file.ended(file)
    logged = history(file)
    assert [row["epoch"] for row in logged] == [row["_step"] for row in logged] == [0, 1, 2, 3]
    for row, own in zip(logged, rows, strict=True):
        assert {name: row[name] for name in own} == dict(own)
    media = {name for row in logged for name in row if "/" in name}
    assert {name.rpartition("/")[0] for name in media} >= FIGURES | TABLES
    for name in FIGURES:
        (picture,) = tmp_path.glob(f"wandb/offline-*/files/media/images/{name}_3_*.png")
        assert min(Image.open(picture).size) > 300
    for name in TABLES:
        (table,) = tmp_path.glob(f"wandb/offline-*/files/media/table/{name}_3_*.table.json")
        assert len(json.loads(table.read_text())["data"]) >= 20
    run = offline_file.run(file)
    assert (run.run_id, run.display_name, run.run_group) == ("0003-abcd", "0003-abcd", "")
    assert (run.project, run.job_type) == ("conr_ray", "train")
    stored = offline_file.config(file)
    assert stored["neighborhood"] == {
        "pool": "batch",
        "kind": "contextual",
        "k1": 10,
        "k2": 2,
        "k": 10,
        "probes": None,
    }
    artifacts = [r.request.log_artifact.artifact for r in records if r.HasField("request")]
    artifacts += [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    models = {a.name: a for a in artifacts if a.type == "model"}
    contents = [entry.path for entry in models["0003-abcd-checkpoint"].manifest.contents]
    assert sorted(contents) == ["config.yaml", "state.pt", "summary.json"]
    (named,) = (a for a in artifacts if a.type == "assignments")
    contents = {entry.path: entry for entry in named.manifest.contents}
    assert named.name == "0003-abcd-assignments"
    assert set(contents) == {"assignments.parquet", "clusters.table.json"}
    shown = json.loads(Path(contents["clusters.table.json"].local_path).read_text())
    assert shown["columns"] == ["sample_id", "cluster", "certainty"] and len(shown["data"]) == 300
    kept = [p for p in tmp_path.glob("wandb/**/*") if p.is_file()]
    assert not any(KEY[:32].encode() in p.read_bytes() for p in kept)


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_a_resumed_run_logs_no_epoch_twice(tmp_path: Path) -> None:
    class StopAfter(Observer):
        def epoch(self, row: MetricRow) -> None:
            if row["epoch"] == 4:
                raise SystemExit

    class Both(Observer):
        def __init__(self, config: RunConfig) -> None:
            self.tracked, self.stop = open_wandb(settings(tmp_path), config), StopAfter()

        def inherit(self, rows: Any) -> None:
            self.tracked.inherit(rows)

        def epoch(self, row: MetricRow) -> None:
            self.tracked.epoch(row)
            self.stop.epoch(row)

        def end(self, error: BaseException | None) -> None:
            self.tracked.end(error)

    # Epochs 3 and 4 are trained, logged and then trained again.
    config = tiny_config(schedule__epochs=7, checkpoint__every=3)
    with pytest.raises(SystemExit):
        run_here(config, tmp_path, Both(config))
    assert RunDirectory(tmp_path).checkpoint_epochs() == [3]
    assert logged_epochs(str(tmp_path), "0003-abcd") == {0, 1, 2, 3, 4}
    time.sleep(1)  # the names of W&B's folders hold the second
    run_here(config, tmp_path, open_wandb(settings(tmp_path), config))
    assert [len(history(file)) for file in files(tmp_path)] == [5, 2]
    assert [row["epoch"] for row in logged_rows(tmp_path)] == list(range(7))


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
@pytest.mark.long
def test_a_killed_run_logs_what_was_lost(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from tests.tracking.test_wandb_run import *\n"
        "import torch; torch.set_num_threads(1)\n"
        "config, folder = tiny_config(schedule__epochs=200), Path(sys.argv[1])\n"
        "run_here(config, folder, open_wandb(settings(folder), config))\n"
    )
    # As in a notebook that has logged something: what it starts inherits its service.
    wandb.setup().ensure_service()
    assert os.environ["WANDB_SERVICE"]
    victim = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + HANG_S
    while len(RunDirectory(tmp_path).metric_rows()) < 6:
        assert time.monotonic() < deadline and victim.poll() is None
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    saved = RunDirectory(tmp_path).checkpoint_epochs()[-1]
    assert 0 < saved < 200
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=HANG_S)
    assert sorted(row["epoch"] for row in logged_rows(tmp_path)) == list(range(200))


def test_a_file_that_was_cut_is_read_to_the_cut(tmp_path: Path) -> None:
    run = wandb.init(
        mode="offline", dir=tmp_path, id="0003-abcd", settings=wandb.Settings(silent=True)
    )
    for epoch in range(400):
        run.log({"epoch": epoch, "text": "x" * 300}, step=epoch)
    run.finish()
    (file,) = files(tmp_path)
    offline_file.ended(file)
    whole = file.read_bytes()
    assert logged_epochs(str(tmp_path), "0003-abcd") == set(range(400))
    lengths = []
    for size in (0, 5, 7, 10, 33_000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        found = logged_epochs(str(tmp_path), "0003-abcd")
        assert found == set(range(len(found)))
        lengths.append(len(found))
    assert lengths == sorted(lengths) and 100 < lengths[-2] < 300


class Broken:
    """A W&B whose disk is full."""

    resumed = False

    def define_metric(self, *args: object, **options: object) -> None: ...

    def log(self, row: object, **options: object) -> None:
        raise OSError("the disk is full")

    finish = log


def test_a_failure_of_wandb_is_told_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **options: Broken())
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        rows = run_here(config, tmp_path, open_wandb(settings(tmp_path), config))
    assert len(rows) == 4
    told = [record.message for record in caplog.records if "W&B" in record.message]
    assert told == ["W&B failed, continuing without it: the disk is full"]


class Quiet(Broken):
    """A W&B that takes everything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any], **options: object) -> None:
        self.rows.append(row)

    def finish(self, **options: object) -> None: ...


def test_a_failure_in_drawing_is_told_once_and_metrics_are_logged_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no font")

    quiet = Quiet()
    monkeypatch.setattr(wandb, "init", lambda **options: quiet)
    monkeypatch.setattr(wandb_run, "snapshot_media", fail)
    monkeypatch.setattr(DrawingBudget, "allows_another", lambda self: True)
    config = tiny_config(evaluation__snapshot_every=1)
    with caplog.at_level(logging.WARNING):
        run_here(config, tmp_path, open_wandb(settings(tmp_path), config))
    assert [row["epoch"] for row in quiet.rows] == [0, 1, 2, 3]
    told = [record.message for record in caplog.records if "figures" in record.message]
    assert told == ["cannot draw figures for W&B, continuing without: no font"]


def test_figures_of_short_runs_are_drawn_at_the_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Quiet()
    monkeypatch.setattr(wandb, "init", lambda **options: quiet)
    config = tiny_config(evaluation__snapshot_every=1)
    run_here(config, tmp_path, open_wandb(settings(tmp_path), config))
    assert [row["epoch"] for row in quiet.rows if set(row) >= FIGURES] == [3]


def test_sparing_draws_no_figures_of_short_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Quiet()
    monkeypatch.setattr(wandb, "init", lambda **options: quiet)
    config = tiny_config(evaluation__snapshot_every=1)
    sparing = dataclasses.replace(settings(tmp_path), sparing=True)
    run_here(config, tmp_path, open_wandb(sparing, config))
    assert [row["epoch"] for row in quiet.rows] == [0, 1, 2, 3]
    assert not any(set(row) & FIGURES for row in quiet.rows)


def test_drawing_may_take_a_fiftieth_of_the_training() -> None:
    budget = DrawingBudget()
    budget.add_epoch(49)
    assert not budget.allows_another()  # a second is expected of the first drawing
    budget.add_epoch(10)
    assert budget.allows_another()
    with budget.spending():
        time.sleep(0.2)
    assert 0.9 < budget.left_s() < 1.0
    assert budget.allows_another()


def test_a_wandb_that_does_not_start_is_told_and_replaced_by_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise wandb.errors.UsageError("no such project")

    monkeypatch.setattr(wandb, "init", refuse)
    with caplog.at_level(logging.WARNING):
        observer = open_wandb(settings(tmp_path), tiny_config())
    assert type(observer) is Observer
    assert "no such project" in caplog.text


@pytest.mark.usefixtures("_no_key")
@pytest.mark.parametrize(
    ("environment", "asked", "mode", "told"),
    [
        ({}, "auto", "off", True),
        ({"WANDB_MODE": "offline"}, "auto", "offline", False),
        ({"WANDB_MODE": "disabled"}, "auto", "off", False),
        ({"WANDB_API_KEY": "k" * 40}, "auto", "online", False),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "auto", "offline", False),
        ({"WANDB_API_KEY": "k" * 40}, "off", "off", False),
    ],
)
def test_the_mode_follows_key_environment_and_config(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    asked: str,
    mode: str,
    told: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, note = wandb_mode(tiny_config(tracking__wandb=asked).tracking)
    assert found == mode
    assert (note is not None) == told


@pytest.mark.usefixtures("_no_key")
@pytest.mark.parametrize(
    ("host", "url", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        ("api.forge.coreweave.com", None, "online"),
        ("api.wandb.ai", "http://own:8080", "off"),
        ("own:8080", "http://own:8080", "online"),
        ("own", "https://own", "online"),
        ("own", None, "off"),
    ],
)
def test_a_key_is_found_where_a_login_leaves_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, url: str | None, mode: str
) -> None:
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    monkeypatch.delenv("NETRC")
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert wandb_mode(tiny_config().tracking)[0] == mode


WITH_A_DEAD_SERVICE = """
import sys
from pathlib import Path
import psutil
from conr_ray.tracking.wandb_observer import open_wandb
from tests.tiny_runs import run_here, tiny_config
from tests.tracking.test_wandb_run import settings
folder, config = Path(sys.argv[1]), tiny_config()
observer = open_wandb(settings(folder), config)
for process in psutil.Process().children(recursive=True):
    process.kill()
    process.wait()
# One of the libraries that W&B counts.
import fastai
assert len(run_here(config, folder, observer)) == 4
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_a_run_outlives_the_process_of_wandb(tmp_path: Path) -> None:
    (tmp_path / "fastai.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_DEAD_SERVICE, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B failed, continuing without it") == 1
