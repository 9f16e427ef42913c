"""A Ray that commands start on this machine: its folder, its silence about keys, its end."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from conr_ray.errors import UserError
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.tracking.wandb_file import history
from tests.tiny_runs import TINY, as_settings
from tests.waiting import HANG_S

# A search and two runs in one process, the last on a Ray of the process's own.
COMMANDS = """
import sys
import ray
from conr_ray.train import main as train
from conr_ray.tune import main as tune
storage, space, *settings = sys.argv[1:]
tune(["--space", space, "--storage", storage, "--name", "search"])
train(["--preset", "digits", *settings, "--storage", storage, "--name", "pair", "--workers", "2"])
assert not ray.is_initialized()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
train(["--preset", "digits", *settings, "--storage", storage, "--name", "guest"])
assert ray.is_initialized()
"""
EPOCHS = 2
SMALL = {**TINY, "data.limit": 128, "schedule.epochs": EPOCHS, "schedule.group_start": 1}
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE",
    "AWS_SECRET_ACCESS_KEY": "fake/secret/of/aws/0123456789",
    "AWS_SESSION_TOKEN": "faketoken" * 3,
    "WANDB_API_KEY": "fa4e" * 10,
}


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for Ray, with a path that leaves room for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cr", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_commands_in_one_process_write_no_key_and_log_offline_where_wandb_is_dead(
    tmp_path: Path, short_folder: Path
) -> None:
    space = tmp_path / "space.yaml"
    tree = {"preset": "digits", "metric": "silhouette", "trials": 2, "scheduler": None}
    tree |= {"fixed": SMALL, "search": {"neighborhood.k1": {"int": [5, 20]}}}
    space.write_text(yaml.safe_dump(tree))
    storage = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(storage), str(space), *as_settings(SMALL)],
        env={
            **os.environ,
            **SECRETS,
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "W&B" in line]
    assert len(told) == 3, done.stdout
    assert all("127.0.0.1:9 does not answer" in line for line in told)
    _check_offline_runs(storage, told[0])

    # Beside it is the folder of the process's own Ray.
    private = short_folder / f"conr_ray-{os.geteuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    sessions = [one for one in (private / "ray").glob("session_2*") if one.is_dir()]
    assert len(sessions) == 2
    login = base64.b64encode(f"api:{SECRETS['WANDB_API_KEY']}".encode())
    secrets = [value.encode() for value in SECRETS.values()] + [login]
    files = [one for top in (tmp_path, short_folder) for one in top.rglob("*") if one.is_file()]
    assert any(file.name == "runtime_env_agent.log" for file in files)
    assert [file for file in files if any(one in file.read_bytes() for one in secrets)] == []


def _check_offline_runs(storage: Path, told: str) -> None:
    """The folders that the line of a search names hold the search and all epochs of its trials."""
    words = told.partition("wandb sync ")[2].split()
    folders = [folder for word in words for folder in Path("/").glob(word.removeprefix("/"))]
    rows = {file.stem: history(file) for folder in folders for file in folder.glob("*.wandb")}
    assert "run-search" in rows
    trials = [run.name for run in (storage / "search" / "trials").iterdir()]
    assert len(trials) == 2
    for trial in trials:
        assert [row["epoch"] for row in rows[f"run-{trial}"]] == list(range(EPOCHS))


def test_a_start_that_fails_is_one_line(short_folder: Path) -> None:
    folder = short_folder / f"conr_ray-{os.geteuid()}"
    folder.mkdir()
    (folder / "ray").write_text("in the way")
    with pytest.raises(
        UserError, match=rf"^Ray does not start: {folder}/ray.*, or set RAY_TMP"
    ) as e:
        start(WorkerResources(1), dashboard=False)
    assert "\n" not in str(e.value)
    assert not ray.is_initialized()
