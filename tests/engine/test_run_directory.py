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


def test_a_run_may_be_resumed_for_more_epochs_and_nothing_else(
    open_directory: OpenDirectory,
) -> None:
    open_directory().claim(CONFIG, resume=False)
    more = {"schedule.epochs": 2 * CONFIG.schedule.epochs}
    longer = override(CONFIG, more)
    with pytest.raises(FolderTaken, match=r"holds this run$") as caught:
        open_directory().claim(longer, resume=False)
    assert caught.value.same_run
    with pytest.raises(FolderTaken, match=r"another run \(optim\.lr: [\d.]+ -> 0\.2\)$"):
        open_directory().claim(override(longer, {"optim.lr": 0.2}), resume=True)
    assert open_directory().read_config() == CONFIG
    # How it is compiled may change each time; the config of the run stays.
    open_directory().claim(override(longer, {"optim.compile": "off"}), resume=True)
    assert open_directory().read_config() == longer
    with pytest.raises(FolderTaken, match=r"another run \(schedule\.epochs: \d+ -> \d+\)$"):
        open_directory().claim(CONFIG, resume=True)
    slower = override(longer, {"schedule.cosine_epochs": 3000})
    with pytest.raises(FolderTaken, match=r"another run \(schedule\.cosine_epochs"):
        open_directory().claim(slower, resume=True)
    open_directory().claim(override(slower, {"schedule.epochs": 900}), resume=True)


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
    open_directory().tidy()
    open_directory().tidy()
    open_directory().raise_failure()


# What an earlier attempt left


def test_one_process_at_a_time_trains_a_run(tmp_path: Path) -> None:
    again = RunDirectory(tmp_path).held()
    with RunDirectory(tmp_path).held(), pytest.raises(UserError, match="another process trains"):
        again.__enter__()
    with RunDirectory(tmp_path).held():
        pass


def test_what_was_cut_short_is_collected_before_training(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.claim(override(CONFIG, {"checkpoint.keep": 1}), resume=False)
    directory.save_checkpoint(4, {"epoch": 4}, {}, keep=1)
    before = sorted(tmp_path.rglob("*"))
    # Killed after a checkpoint was written, before the one that it replaces was deleted.
    directory.save_checkpoint(2, {"epoch": 2}, {}, keep=9)
    for name in ("metrics.parquet.7.part", "checkpoints/epoch_000002.7.part/state.pt"):
        directory.write_text(name, "half")
    directory.write_text("checkpoints/epoch_000008/state.pt", "half")
    directory.tidy()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["state.pt", "summary.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    open_directory: OpenDirectory, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = open_directory()
    for epoch in (2, 4, 6):
        directory.save_checkpoint(epoch, {"epoch": epoch}, {}, keep=3)
    for epoch in (4, 6):
        directory.write_bytes(f"checkpoints/epoch_{epoch:06d}/{name}", b"damaged")
    open_directory().tidy()
    assert open_directory().checkpoint_epochs() == [2]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" is damaged (")[0].split("/")[-2] for line in told] == [
        "epoch_000006",
        "epoch_000004",
    ]
    assert told[1].endswith("deleted; the run goes on from that after 2 epochs")


def test_damaged_metrics_are_written_anew(
    open_directory: OpenDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    open_directory().write_bytes("metrics.parquet", b"PAR1")
    open_directory().tidy()
    assert open_directory().metric_rows() == []
    assert "metrics.parquet is damaged (" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_or_epoch_is_refused(open_directory: OpenDirectory) -> None:
    directory, cpu = open_directory(), torch.device("cpu")
    directory.claim(CONFIG, resume=False)
    other = override(CONFIG, {"optim.lr": 0.7}).to_yaml()
    directory.save_checkpoint(2, {"epoch": 2, "config": other}, {}, keep=3)
    with pytest.raises(UserError, match=r"epoch_000002 is of another run \(optim\.lr: 0\.7 -> "):
        directory.load_checkpoint(2, cpu)
    directory.save_checkpoint(4, {"epoch": 2, "config": CONFIG.to_yaml()}, {}, keep=3)
    with pytest.raises(UserError, match=r"epoch_000004/state\.pt is damaged \(it is of epoch 2"):
        directory.load_checkpoint(4, cpu)
    moved = override(CONFIG, {"data.path": None, "checkpoint.keep": 2}).to_yaml()
    directory.save_checkpoint(6, {"epoch": 6, "config": moved}, {}, keep=3)
    assert directory.load_checkpoint(6, cpu)["epoch"] == 6


def test_an_emptied_config_is_told(open_directory: OpenDirectory) -> None:
    open_directory().write_text("config.yaml", "")
    with pytest.raises(UserError, match=r"/run/config\.yaml is empty: put back a copy"):
        open_directory().claim(CONFIG, resume=True)


# All of it


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.claim(CONFIG, resume=False)
    directory.write_metrics([{"epoch": 0}])
    directory.save_checkpoint(4, {"weight": torch.ones(2)}, {}, keep=1)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    checkpoint = "checkpoints/epoch_000004"
    assert names == [
        ".folder-id",
        f"{checkpoint}/state.pt",
        f"{checkpoint}/summary.json",
        "config.yaml",
        "metrics.parquet",
    ]
