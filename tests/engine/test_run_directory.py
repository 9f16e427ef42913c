"""A run's files: who owns a directory, its metrics, and why it stopped.

The same holds on a local path and in an object store.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conr_ray.config import load_preset, override
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import FolderTaken, RunFailed, StorageError, UserError
from tests.waiting import HANG_S

CONFIG = load_preset("digits")

OpenDirectory = Callable[[], RunDirectory]


@pytest.fixture
def open_directory(any_storage: str) -> OpenDirectory:
    """Opens one and the same directory, anew at each call."""
    return lambda: RunDirectory(f"{any_storage}/run")


def test_who_reads_runs_needs_no_torch() -> None:
    code = "import sys, conr_ray.engine.run_directory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_S)


# Claims


def test_a_claimed_directory_holds_the_config(open_directory: OpenDirectory) -> None:
    assert open_directory().read_config() is None
    open_directory().claim(CONFIG, resume=False)
    assert open_directory().read_config() == CONFIG


def test_a_run_goes_on_only_when_asked_to(open_directory: OpenDirectory) -> None:
    open_directory().claim(CONFIG, resume=False)
    with pytest.raises(FolderTaken, match=r"holds this run$") as caught:
        open_directory().claim(CONFIG, resume=False)
    assert caught.value.same_run
    open_directory().claim(CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_of_another_run_is_refused_with_the_field(
    open_directory: OpenDirectory, resume: bool
) -> None:
    open_directory().claim(CONFIG, resume=False)
    changed = override(CONFIG, {"neighborhood.k1": 11, "optim.lr": 0.2})
    with pytest.raises(FolderTaken) as caught:
        open_directory().claim(changed, resume=resume)
    told = "holds another run (neighborhood.k1: 10 -> 11 and 1 more)"
    assert str(caught.value).endswith(told) and "\n" not in str(caught.value)
    assert not caught.value.same_run
    assert open_directory().read_config() == CONFIG


def test_a_trial_that_starts_anew_may_claim_with_resume(open_directory: OpenDirectory) -> None:
    open_directory().claim(CONFIG, resume=True)
    assert open_directory().read_config() == CONFIG


def test_a_config_of_another_version_is_told_in_a_line(open_directory: OpenDirectory) -> None:
    text = CONFIG.to_yaml()
    open_directory().write_text(
        "config.yaml", text.replace("model:\n", "model:\n  momentum: 0.9\n")
    )
    told = (
        r"/run/config\.yaml: model\.momentum: .*: it was written by another version of conr_ray; "
        r"use that version, or choose another name$"
    )
    with pytest.raises(UserError, match=told):
        open_directory().read_config()
    with pytest.raises(UserError, match=told):
        open_directory().claim(CONFIG, resume=True)


def test_a_framework_of_another_version_is_told_when_a_run_is_claimed(
    open_directory: OpenDirectory,
) -> None:
    framework = CONFIG.model.framework
    text = CONFIG.to_yaml().replace(f"\n{framework}:\n", f"\n{framework}:\n  speed: 0.9\n")
    open_directory().write_text("config.yaml", text)
    # Whoever reads a finished run does without torch, which a look at that section takes.
    assert open_directory().read_config() is not None
    with pytest.raises(
        UserError, match=rf"{framework}\.speed.*: it was written by another version"
    ):
        open_directory().claim(CONFIG, resume=True)


# Metrics


def test_metric_rows_come_back_from_an_epoch_on(open_directory: OpenDirectory) -> None:
    directory = open_directory()
    assert directory.metric_rows() == []
    directory.write_metrics([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "stage": "group", "acc": 1.0}])
    rows = [
        {"epoch": 0, "loss": 1.5},
        {"epoch": 1, "stage": "group", "acc": 1.0},
    ]
    assert open_directory().metric_rows() == rows
    assert open_directory().metric_rows(from_epoch=1) == rows[1:]
    assert open_directory().metric_rows(from_epoch=2) == []


def test_a_reader_sees_only_whole_files(tmp_path: Path) -> None:
    writer, reader = RunDirectory(tmp_path), RunDirectory(tmp_path)
    writer.write_metrics([{"epoch": 0}])
    ended = threading.Event()

    def write() -> None:
        for count in range(2, 60):
            writer.write_metrics([{"epoch": epoch} for epoch in range(count)])
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 1
    while not ended.is_set():
        rows = reader.metric_rows()
        assert len(rows) >= seen and rows[-1]["epoch"] == len(rows) - 1
        seen = len(rows)
    thread.join()
    assert len(reader.metric_rows()) == 59


# Failures


@pytest.mark.parametrize("kind", [StorageError, UserError, RunFailed])
def test_a_recorded_failure_is_raised_where_it_is_read(
    open_directory: OpenDirectory, kind: type[Exception]
) -> None:
    open_directory().raise_failure()
    open_directory().record_failure(kind("loss is nan at epoch 3"))  # type: ignore[arg-type]
    with pytest.raises(kind, match=r"^loss is nan at epoch 3$") as caught:
        open_directory().raise_failure()
    assert type(caught.value) is kind
    open_directory().clear_failure()
    open_directory().clear_failure()
    open_directory().raise_failure()


# All of it


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.claim(CONFIG, resume=False)
    directory.write_metrics([{"epoch": 0}])
    directory.save_checkpoint(4, {"weight": torch.ones(2)}, {}, keep=1)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    checkpoint = "checkpoints/epoch_000004"
    assert names == [
        f"{checkpoint}/state.pt",
        f"{checkpoint}/summary.json",
        "config.yaml",
        "metrics.parquet",
    ]
