"""A run whose object store goes away for minutes, and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conr_ray.engine.run_directory import RunDirectory
from tests.chaos.places import Bucket
from tests.tiny_runs import TINY, as_settings, without_times
from tests.waiting import HANG_S, until

pytestmark = pytest.mark.long
EPOCHS = 40
RUN = {**TINY, "schedule.epochs": EPOCHS, "schedule.group_start": 20, "checkpoint.every": 2}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = Bucket(tmp_path)
    yield made
    made.close()


def start(
    bucket: Bucket, log: Path, *options: str, storage: str | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", "--local"]
    command += ["--storage", storage or bucket.uri, "--name", "one", *options, *as_settings(RUN)]
    environment = {**os.environ, **bucket.environment, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def test_a_run_whose_store_is_gone_ends_in_a_line_and_goes_on_when_it_is_back(
    bucket: Bucket, tmp_path: Path
) -> None:
    process = start(bucket, tmp_path / "run.log")
    run = RunDirectory(f"{bucket.uri}/one")
    until(lambda: len(run.metric_rows()) > 5, pause_s=0.1)
    bucket.go_away()
    _ends_in_a_line(process, bucket, tmp_path / "run.log")
    # As does the next one while it is gone.
    process = start(bucket, tmp_path / "gone.log", "--resume")
    _ends_in_a_line(process, bucket, tmp_path / "gone.log")
    bucket.come_back()
    process = start(bucket, tmp_path / "back.log", "--resume")
    assert process.wait(timeout=HANG_S) == 0, (tmp_path / "back.log").read_text()
    process = start(bucket, tmp_path / "undisturbed.log", storage=str(tmp_path))
    assert process.wait(timeout=HANG_S) == 0, (tmp_path / "undisturbed.log").read_text()
    undisturbed = RunDirectory(tmp_path / "one").metric_rows()
    assert without_times(run.metric_rows()) == without_times(undisturbed)


def _ends_in_a_line(process: subprocess.Popen[bytes], bucket: Bucket, log: Path) -> None:
    assert process.wait(timeout=HANG_S) == 2
    told = log.read_text()
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"error: --storage: {bucket.uri}/one"), told
    assert "failure.json" not in last and "Traceback" not in told
