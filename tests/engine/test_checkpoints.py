"""Checkpoints: what survives a stop, and what damaged ones say.

The same holds on a local path and in an object store.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conr_ray.engine.checkpoints import CheckpointFolder
from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk
from tests.storage.faulty import FaultyDisk, failing_by

CPU = torch.device("cpu")
STATE = {"online": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 4, "config": "seed: 0"}

OpenFolder = Callable[[], CheckpointFolder]


@pytest.fixture
def open_folder(any_storage: str) -> OpenFolder:
    """Opens one and the same folder, anew at each call."""
    return lambda: CheckpointFolder(f"{any_storage}/run")


def save(folder: CheckpointFolder, epoch: int, keep: int = 100) -> None:
    folder.save_checkpoint(epoch, {**STATE, "epoch": epoch}, {"epochs_trained": epoch}, keep)


def test_a_checkpoint_comes_back_with_tensors_and_plain_values(
    open_folder: OpenFolder,
) -> None:
    save(open_folder(), 4)
    state = open_folder().load_checkpoint(4, CPU)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["online"]["weight"], STATE["online"]["weight"])  # type: ignore[index]
    assert (state["epoch"], state["config"]) == (4, "seed: 0")
    summary = open_folder().read_text("checkpoints/epoch_000004/summary.json")
    assert summary is not None and json.loads(summary)["epochs_trained"] == 4


def test_pruning_keeps_the_newest_checkpoints(open_folder: OpenFolder) -> None:
    for epoch in (5, 10, 999_999, 1_000_000):
        save(open_folder(), epoch, keep=2)
    folder = open_folder()
    assert folder.checkpoint_epochs() == [999_999, 1_000_000]
    assert folder.read_text("checkpoints/epoch_000005/summary.json") is None
    assert folder.load_checkpoint(1_000_000, CPU)["epoch"] == 1_000_000
    save(folder, 1_000_001, keep=1)
    assert open_folder().checkpoint_epochs() == [1_000_001]


def test_without_checkpoints_there_are_no_epochs(open_folder: OpenFolder) -> None:
    assert open_folder().checkpoint_epochs() == []
    open_folder().write_text("config.yaml", "seed: 0")
    assert open_folder().checkpoint_epochs() == []


def test_a_checkpoint_without_summary_is_passed_over(open_folder: OpenFolder) -> None:
    save(open_folder(), 4)
    open_folder().write_text("checkpoints/epoch_000008/state.pt", "half of a st")
    assert open_folder().checkpoint_epochs() == [4]
    # Trained again, the epoch is written whole.
    save(open_folder(), 8)
    assert open_folder().checkpoint_epochs() == [4, 8]
    assert open_folder().load_checkpoint(8, CPU)["epoch"] == 8


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
    folder = CheckpointFolder(tmp_path)
    save(folder, 2)
    save(folder, 4)
    (tmp_path / "checkpoints/epoch_000004/state.pt").write_bytes(data)
    with pytest.raises(UserError) as caught:
        folder.load_checkpoint(4, CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/checkpoints/epoch_000004/state.pt is damaged (")
    assert message.endswith("): resume the run, which goes on from the checkpoint before")
    assert "\n" not in message
    assert folder.load_checkpoint(2, CPU)["epoch"] == 2


def test_loading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    folder, trace = CheckpointFolder(tmp_path), tmp_path / "trace"
    save(folder, 4)
    state = tmp_path / "checkpoints/epoch_000004/state.pt"
    state.write_bytes(saved_bytes({"epoch": Intruder(trace)}))
    # Whoever wrote the file can write a summary that fits.
    (state.parent / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="it holds more than tensors and plain values") as caught:
        folder.load_checkpoint(4, CPU)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()


def test_a_write_that_is_cut_short_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 4)
    with monkeypatch.context() as patch:
        for epoch in (4, 8):
            # The second operation is the first write.
            patch.setattr(disk, "os", FaultyDisk(2, failing_by(errno.ENOSPC)))
            with pytest.raises(StorageError, match="No space"):
                save(folder, epoch)
    assert folder.checkpoint_epochs() == [4]
    assert folder.load_checkpoint(4, CPU)["epoch"] == 4
