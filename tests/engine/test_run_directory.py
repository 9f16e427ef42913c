"""A run's files: who owns a directory, what survives a stop, and what damaged files say.

The same holds on a local path and in an object store, here fsspec's in-memory one behind pyarrow.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from conr_ray.config import load_preset, override
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import RunFailed, UserError

CONFIG = load_preset("digits")
CPU = torch.device("cpu")
STATE = {"online": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 4, "config": "seed: 0"}

OpenDirectory = Callable[[], RunDirectory]


@pytest.fixture(params=["local", "file_uri", "object_store"])
def open_directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OpenDirectory:
    """Opens one and the same directory, anew at each call."""
    if request.param == "local":
        return lambda: RunDirectory(tmp_path / "runs" / "run")
    if request.param == "file_uri":
        return lambda: RunDirectory(f"file://{tmp_path}/runs/run")
    store = MemoryFileSystem(skip_instance_cache=True)
    monkeypatch.setattr(store, "store", {})
    monkeypatch.setattr(store, "pseudo_dirs", [""])
    files = pafs.PyFileSystem(pafs.FSSpecHandler(store))

    class Registry:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return files, uri.partition("://")[2]

    monkeypatch.setattr(pafs, "FileSystem", Registry)
    return lambda: RunDirectory("memory://bucket/runs/run/")


# Claims


def test_a_claimed_directory_holds_the_config(open_directory: OpenDirectory) -> None:
    assert open_directory().read_config() is None
    open_directory().claim(CONFIG, resume=False)
    assert open_directory().read_config() == CONFIG


def test_a_run_goes_on_only_when_asked_to(open_directory: OpenDirectory) -> None:
    open_directory().claim(CONFIG, resume=False)
    with pytest.raises(UserError, match="holds this run: add --resume, or choose another --name"):
        open_directory().claim(CONFIG, resume=False)
    open_directory().claim(CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_of_another_run_is_refused_with_the_field(
    open_directory: OpenDirectory, resume: bool
) -> None:
    open_directory().claim(CONFIG, resume=False)
    changed = override(CONFIG, {"neighborhood.k1": 11, "optim.lr": 0.2})
    with pytest.raises(UserError) as caught:
        open_directory().claim(changed, resume=resume)
    assert "holds another run (neighborhood.k1: 10 -> 11 and 1 more)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert open_directory().read_config() == CONFIG


def test_a_trial_that_starts_anew_may_claim_with_resume(open_directory: OpenDirectory) -> None:
    open_directory().claim(CONFIG, resume=True)
    assert open_directory().read_config() == CONFIG


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory("run").uri == RunDirectory("./run/").uri == str(tmp_path / "run")


# Texts, tables and metrics


def test_files_are_read_as_they_were_written(open_directory: OpenDirectory) -> None:
    table = pa.table({"sample": [0, 1], "cluster": [3, 4]})
    directory = open_directory()
    assert directory.read_text("notes.txt") is None and directory.read_table("t.parquet") is None
    directory.write_text("notes.txt", "übrig\n")
    directory.write_table("t.parquet", table)
    assert open_directory().read_text("notes.txt") == "übrig\n"
    assert open_directory().read_table("t.parquet") == table
    directory.write_text("notes.txt", "shorter")
    assert open_directory().read_text("notes.txt") == "shorter"


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


# Failures


@pytest.mark.parametrize("kind", [UserError, RunFailed])
def test_a_recorded_failure_is_raised_where_it_is_read(
    open_directory: OpenDirectory, kind: type[Exception]
) -> None:
    open_directory().raise_failure()
    open_directory().record_failure(kind("loss is nan at epoch 3"))  # type: ignore[arg-type]
    with pytest.raises(kind, match=r"^loss is nan at epoch 3$"):
        open_directory().raise_failure()
    open_directory().clear_failure()
    open_directory().clear_failure()
    open_directory().raise_failure()


# Checkpoints


def save(directory: RunDirectory, epoch: int, keep: int = 100) -> None:
    directory.save_checkpoint(epoch, {**STATE, "epoch": epoch}, {"epochs_trained": epoch}, keep)


def test_a_checkpoint_comes_back_with_tensors_and_plain_values(
    open_directory: OpenDirectory,
) -> None:
    save(open_directory(), 4)
    state = open_directory().load_checkpoint(4, CPU)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["online"]["weight"], STATE["online"]["weight"])  # type: ignore[index]
    assert (state["epoch"], state["config"]) == (4, "seed: 0")
    summary = open_directory().read_text("checkpoints/epoch_000004/summary.json")
    assert summary is not None and json.loads(summary)["epochs_trained"] == 4


def test_pruning_keeps_the_newest_checkpoints(open_directory: OpenDirectory) -> None:
    for epoch in (5, 10, 999_999, 1_000_000):
        save(open_directory(), epoch, keep=2)
    directory = open_directory()
    assert directory.checkpoint_epochs() == [999_999, 1_000_000]
    assert directory.read_text("checkpoints/epoch_000005/summary.json") is None
    assert directory.load_checkpoint(1_000_000, CPU)["epoch"] == 1_000_000
    save(directory, 1_000_001, keep=1)
    assert open_directory().checkpoint_epochs() == [1_000_001]


def test_without_checkpoints_there_are_no_epochs(open_directory: OpenDirectory) -> None:
    assert open_directory().checkpoint_epochs() == []
    open_directory().claim(CONFIG, resume=False)
    assert open_directory().checkpoint_epochs() == []


def test_a_checkpoint_without_summary_is_passed_over(open_directory: OpenDirectory) -> None:
    save(open_directory(), 4)
    open_directory().write_text("checkpoints/epoch_000008/state.pt", "half of a st")
    assert open_directory().checkpoint_epochs() == [4]
    # Trained again, the epoch is written whole.
    save(open_directory(), 8)
    assert open_directory().checkpoint_epochs() == [4, 8]
    assert open_directory().load_checkpoint(8, CPU)["epoch"] == 8


def saved_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Intruder:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


WHOLE = saved_bytes(STATE)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="first half"),
        pytest.param(WHOLE[:-20], id="end missing"),
        pytest.param(b"no archive at all", id="text"),
        pytest.param(WHOLE.replace(b"online", b"\xff" * 6), id="bytes changed"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_way_back(tmp_path: Path, data: bytes) -> None:
    directory = RunDirectory(tmp_path)
    save(directory, 2)
    save(directory, 4)
    (tmp_path / "checkpoints/epoch_000004/state.pt").write_bytes(data)
    with pytest.raises(UserError) as caught:
        directory.load_checkpoint(4, CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/checkpoints/epoch_000004/state.pt is damaged (")
    assert message.endswith("): delete its folder to go on from the checkpoint before")
    assert "\n" not in message
    assert directory.load_checkpoint(2, CPU)["epoch"] == 2


def test_loading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    directory, trace = RunDirectory(tmp_path), tmp_path / "trace"
    save(directory, 4)
    state = tmp_path / "checkpoints/epoch_000004/state.pt"
    state.write_bytes(saved_bytes({"epoch": Intruder(trace)}))
    with pytest.raises(Exception, match=r"weights_only|Weights only|damaged"):
        directory.load_checkpoint(4, CPU)
    assert not trace.exists()


# Whole or not at all


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.claim(CONFIG, resume=False)
    directory.write_metrics([{"epoch": 0}])
    save(directory, 4)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    checkpoint = "checkpoints/epoch_000004"
    assert names == [
        f"{checkpoint}/state.pt",
        f"{checkpoint}/summary.json",
        "config.yaml",
        "metrics.parquet",
    ]


def test_a_write_that_is_cut_short_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    save(directory, 4)
    whole = Path.write_bytes

    def cut_short(path: Path, data: Any) -> int:
        whole(path, bytes(data)[: len(data) // 2])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut_short)
        with pytest.raises(OSError, match="No space"):
            save(directory, 4)
        with pytest.raises(OSError, match="No space"):
            save(directory, 8)
    assert directory.checkpoint_epochs() == [4]
    assert directory.load_checkpoint(4, CPU)["epoch"] == 4


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
