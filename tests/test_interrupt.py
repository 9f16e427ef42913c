from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import TINY, as_settings, run_here, tiny_config, without_times
from tests.waiting import HANG_S

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("where", [["--local"], []], ids=["here", "on Ray"])
def test_ctrl_c_leaves_a_run_that_resume_takes_up(tmp_path: Path, where: list[str]) -> None:
    changes = {**TINY, "schedule.epochs": 60}
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", *where]
    command += [*as_settings(changes), "--storage", str(tmp_path), "--name", "run"]
    # More threads than cores wait for one another.
    command += ["--cpus-per-worker", "1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    directory = RunDirectory(tmp_path / "run")
    try:
        deadline = time.monotonic() + HANG_S
        while not directory.checkpoint_epochs():
            assert time.monotonic() < deadline, "the run does not start"
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        told = run.communicate(timeout=HANG_S)[1]
    finally:
        run.kill()
    assert run.returncode == 130
    assert told == "interrupted: resume with the same command and --name run --resume\n"
    assert 0 < directory.checkpoint_epochs()[-1] < 60

    subprocess.run([*command, "--resume"], check=True, timeout=HANG_S, capture_output=True)
    rows = directory.metric_rows()
    assert [row["epoch"] for row in rows] == list(range(60))
    assert directory.read_table("assignments.parquet") is not None


def test_ctrl_c_within_a_callback_from_c_is_not_lost() -> None:
    code = """
import ctypes, os, signal, time
from conr_ray.command_line import run_command
def work(arguments):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        time.sleep(0.01)
def main(arguments):
    ctypes.CFUNCTYPE(None, ctypes.py_object)(work)(arguments)
    time.sleep(600)
run_command(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_command_and_the_library_train_alike(tmp_path: Path) -> None:
    """The command uses all cores, which changes last bits: figures agree, not bits."""
    rows = run_here(tiny_config(), tmp_path / "here")
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", "--local"]
    command += [*as_settings(TINY), "--storage", str(tmp_path), "--name", "run"]
    done = subprocess.run(command, check=True, timeout=HANG_S, capture_output=True, text=True)
    assert "ACC" in done.stdout
    told = without_times(RunDirectory(tmp_path / "run").metric_rows())
    for row, own in zip(told, without_times(rows), strict=True):
        assert row["loss"] == pytest.approx(own["loss"], abs=1e-3)
