"""A prediction that is killed at any moment goes on, and ends with the rows of a whole one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.prediction.conftest import about, predict, rows_of

ROOT = Path(__file__).parents[2]
# Parts of 16 rows, each of which takes a while: so that there are moments to be killed at.
SLOW = """
import sys, time
import conr_ray.prediction.predict as p
from conr_ray.command_line import run_command
from conr_ray.prediction.samples import SampleForm
import conr_ray.predict
p.predict.__kwdefaults__["part_rows"] = 16
SampleForm.batch_rows = property(lambda form: 8)
write = p.PredictionDirectory.write_part
def slowly(*arguments):
    time.sleep(0.15)
    write(*arguments)
p.PredictionDirectory.write_part = slowly
run_command(conr_ray.predict.main)
"""


def _start(run: str, images: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    words = ["--run", run, "--images", str(images), "--out", str(out), "--local", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stdout=subprocess.DEVNULL, env=env
    )


def _killed(times: int, run: str, images: Path, out: Path, *options: str) -> None:
    """Kill the command so many times, at moments after it has begun to write, and end it."""
    draw = random.Random(times)
    kills = 0
    while kills < times:
        parts = set((out / "predictions").glob("part-*"))
        process = _start(run, images, out, *options)
        while set((out / "predictions").glob("part-*")) == parts and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.25))
        if process.poll() is not None:
            # It was faster.
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills
    assert _start(run, images, out, *options).wait() == 0


def _check(times: int, folder_run: tuple[str, Path], out: Path) -> None:
    run, images = folder_run
    predict(run, str(images), out / "whole")
    _killed(times, run, images, out / "killed")
    whole, killed = rows_of(out / "whole"), rows_of(out / "killed")
    assert [row["path"] for row in killed] == [row["path"] for row in whole]
    assert [row["cluster"] for row in killed] == [row["cluster"] for row in whole]
    assert about(out / "killed")["complete"]
    # All again, killed on the way: none is left as it was, and none is done twice.
    before = {file.name for file in (out / "killed/predictions").iterdir()}
    _killed(max(1, times // 2), run, images, out / "killed", "--all")
    again = rows_of(out / "killed")
    assert [row["cluster"] for row in again] == [row["cluster"] for row in whole]
    assert [row["path"] for row in again] == [row["path"] for row in whole]
    assert all(row["previous_cluster"] == row["cluster"] for row in again)
    assert not before & {file.name for file in (out / "killed/predictions").iterdir()}


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_has_no_row_twice(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    _check(2, folder_run, tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_a_prediction_that_is_killed_ten_times_ends_with_the_same_rows(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    _check(10, folder_run, tmp_path)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_written_and_says_the_way_on(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, images = folder_run
    words = ["--run", run, "--images", str(images), "--out", str(tmp_path), "--local"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stderr=subprocess.PIPE, env=env, text=True
    )
    while not list(tmp_path.glob("predictions/part-*")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told == (f"interrupted: what is written stays in {tmp_path}, the same command goes on\n")
    assert rows_of(tmp_path) and not about(tmp_path)["complete"]
