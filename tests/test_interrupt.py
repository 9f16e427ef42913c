from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import conr_ray.tune
from conr_ray.command_line import directory_uri, make_parser, subject_of
from conr_ray.config import load_preset
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import TINY, as_settings, run_here, tiny_config, without_times
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("how", "where", "status"),
    [
        pytest.param(signal.SIGINT, ["--local"], 130, id="Ctrl-C here"),
        pytest.param(signal.SIGTERM, [], 143, id="SIGTERM on Ray"),
        pytest.param(
            *(signal.SIGTERM, ["--workers", "2"], 143),
            id="SIGTERM on two workers",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_signal_ends_a_run_within_an_epoch_and_resume_goes_on_there(
    tmp_path: Path, how: signal.Signals, where: list[str], status: int
) -> None:
    # No checkpoint is due before the end. The driver knows of its workers some seconds late.
    epochs, begun = (60, 3) if where == ["--local"] else (240, 60)
    changes = {**TINY, "schedule.epochs": epochs, "checkpoint.every": 1000}
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", *where]
    command += [*as_settings(changes), "--storage", str(tmp_path), "--name", "run"]
    # More threads than cores wait for one another.
    command += ["--cpus-per-worker", "1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    directory = RunDirectory(tmp_path / "run")
    try:
        deadline = time.monotonic() + HANG_S
        while len(directory.metric_rows()) < begun:
            assert time.monotonic() < deadline, "the run does not start"
            time.sleep(0.05)
        run.send_signal(how)
        told = run.communicate(timeout=HANG_S)[1]
    finally:
        run.kill()
    assert run.returncode == status
    (epoch, step) = directory.newest_checkpoint()
    assert directory.checkpoints() == [(epoch, step)] and begun <= epoch < epochs
    assert told == (
        "stopping after this step; once more stops at once\n"
        f"stopped in epoch {epoch + 1} after step {step} of 4: resume with the same command and "
        "--name run --resume, which goes on there\n"
    )
    before = directory.metric_rows()
    subprocess.run([*command, "--resume"], check=True, timeout=HANG_S, capture_output=True)
    rows = directory.metric_rows()
    assert [row["epoch"] for row in rows] == list(range(epochs))
    assert rows[:epoch] == before
    assert directory.read_table("assignments.parquet") is not None


TWO_SIGNALS = """
import os, signal, sys, time
from conr_ray.command_line import resumable, run_command
from conr_ray.engine.stopping import stop_request
def main(arguments):
    with resumable("runs/a", lambda: "which starts anew"), stop_request.heeding():
        if {ignored}:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in ("{first}", "{second}"):
            os.kill(os.getpid(), getattr(signal, name))
            assert stop_request.asked
            print("asked", flush=True)
        time.sleep(600)
run_command(main)
"""


@pytest.mark.parametrize(
    ("first", "second", "ignored", "status"),
    [
        ("SIGINT", "SIGINT", False, 130),
        ("SIGTERM", "SIGINT", False, 143),
        # As where a shell has started the command in the background.
        ("SIGTERM", "SIGTERM", True, 143),
    ],
)
def test_a_second_signal_ends_at_once(first: str, second: str, ignored: bool, status: int) -> None:
    code = TWO_SIGNALS.format(first=first, second=second, ignored=ignored)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (status, "asked\n")
    assert done.stderr == (
        "stopping after this step; once more stops at once\n"
        "interrupted: resume with the same command and --name a --resume, which starts anew\n"
    )


@pytest.mark.parametrize(("how", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_where_nothing_is_trained_a_signal_ends_at_once(how: str, status: int) -> None:
    code = f"""
import os, signal, time
from conr_ray.command_line import run_command
def main(arguments):
    os.kill(os.getpid(), signal.{how})
    time.sleep(600)
run_command(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (status, "interrupted\n")


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


def test_two_commands_that_begin_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path,
) -> None:
    args = make_parser("train", "").parse_args(["--storage", str(tmp_path)])
    uris = {directory_uri(args, "digits") for _ in range(20)}
    assert len(uris) == 20
    assert all(re.fullmatch(rf"{tmp_path}/digits-\d{{8}}-\d{{6}}-[0-9a-f]{{6}}", u) for u in uris)


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Ferien Fotos (2024)", "Ferien-Fotos-2024"),
        ("../a/b", "a-b"),
        ("Übermäßig", "Ubermaig"),
        ("照片", "data"),
        ("\udc80\n-x", "x"),
        ("a" * 300, "a" * 40),
    ],
)
def test_a_folder_has_a_name_that_every_system_takes(title: str, name: str) -> None:
    args = make_parser("train", "").parse_args(["--storage", "s3://bucket"])
    assert re.fullmatch(
        rf"s3://bucket/{name}-\d{{8}}-\d{{6}}-[0-9a-f]{{6}}", directory_uri(args, title)
    )


def test_a_run_of_own_data_is_called_after_them() -> None:
    own = {"data.source": "folder", "data.path": "/home/me/My photos/"}
    for preset, fields, subject in (
        ("digits", {}, "digits"),
        ("cifar20", {"data.path": "/data"}, "cifar20"),
        ("imagenet10", {"data.path": "/data/train"}, "imagenet10"),
        ("digits", own, "My photos"),
        ("imagenet10", {**own, "data.classes": None}, "My photos"),
        ("cifar10", {"data.source": "parquet", "data.path": "s3://b/x.parquet"}, "x"),
    ):
        assert subject_of(load_preset(preset, fields), preset) == subject


def test_a_search_of_own_data_is_called_after_its_space_and_them(tmp_path: Path) -> None:
    space = ["--space", str(ROOT / "search_spaces/digits.yaml"), "--storage", str(tmp_path)]
    own = {"data.source": "folder", "data.path": "/home/me/My photos"}
    for words, begin in (
        (as_settings(own), "digits-My-photos-2"),
        (["--preset", "cifar10_fast"], "digits-cifar10_fast-2"),
        ([], "digits-2"),
    ):
        args = conr_ray.tune._parser().parse_args([*space, *words])
        assert conr_ray.tune._asked(args).directory.name.startswith(begin)


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
