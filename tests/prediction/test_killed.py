"""A prediction that is killed at any moment goes on, and ends with the rows of a whole one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.prediction.conftest import about, predict, rows_of
from tests.prediction.slowly import parts_of, start


def _killed(times: int, run: str, images: Path, out: Path, *options: str) -> None:
    """Kill the command so many times, at moments after it has begun to write, and end it."""
    draw = random.Random(times)
    kills = 0
    while kills < times:
        parts = parts_of(out)
        process = start(run, images, out, *options)
        while parts_of(out) == parts and process.is_alive():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        if process.exitcode == 0:
            # It was faster.
            break
        kills += 1
    assert kills
    process = start(run, images, out, *options)
    process.join()
    assert process.exitcode == 0


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
    process = start(*folder_run, tmp_path)
    while not parts_of(tmp_path):
        time.sleep(0.01)
        assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert rows_of(tmp_path) and not about(tmp_path)["complete"]
    predict(*map(str, folder_run), tmp_path)
    assert len(rows_of(tmp_path)) == 120 and about(tmp_path)["complete"]
