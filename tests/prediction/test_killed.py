"""A prediction that is killed at any moment goes on, and ends with the rows of a whole one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import conr_ray.predict
import conr_ray.prediction.predict
from conr_ray.command_line import run_command
from conr_ray.prediction.output import PredictionDirectory
from conr_ray.prediction.samples import SampleForm
from tests.gloo_workers import start_server
from tests.prediction.conftest import about, predict, rows_of

# Forked from the server of those workers, which has imported torch.
_CONTEXT = multiprocessing.get_context("forkserver")


def _predict_slowly(arguments: list[str]) -> None:
    """The command with parts of 16 rows, each of which takes a while to be written."""
    torch.set_num_threads(1)
    assert conr_ray.prediction.predict.predict.__kwdefaults__ is not None
    conr_ray.prediction.predict.predict.__kwdefaults__["part_rows"] = 16
    SampleForm.batch_rows = property(lambda form: 8)  # type: ignore[assignment]
    write = PredictionDirectory.write_part

    def slowly(directory: PredictionDirectory, number: int, rows: Any) -> None:
        time.sleep(0.1)
        write(directory, number, rows)

    PredictionDirectory.write_part = slowly  # type: ignore[method-assign]
    sys.argv = ["predict", *arguments]
    run_command(conr_ray.predict.main)


def _start(run: str, images: Path, out: Path, *options: str) -> BaseProcess:
    words = ["--run", run, "--images", str(images), "--out", str(out), "--local", *options]
    start_server()
    process = _CONTEXT.Process(target=_predict_slowly, args=(words,))
    process.start()
    return process


def _parts(out: Path) -> set[Path]:
    return set((out / "predictions").glob("part-*"))


def _killed(times: int, run: str, images: Path, out: Path, *options: str) -> None:
    """Kill the command so many times, at moments after it has begun to write, and end it."""
    draw = random.Random(times)
    kills = 0
    while kills < times:
        parts = _parts(out)
        process = _start(run, images, out, *options)
        while _parts(out) == parts and process.is_alive():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        if process.exitcode == 0:
            # It was faster.
            break
        kills += 1
    assert kills
    process = _start(run, images, out, *options)
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
    process = _start(*folder_run, tmp_path)
    while not _parts(tmp_path):
        time.sleep(0.01)
        assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert rows_of(tmp_path) and not about(tmp_path)["complete"]
    predict(*map(str, folder_run), tmp_path)
    assert len(rows_of(tmp_path)) == 120 and about(tmp_path)["complete"]
