"""Runs that are asked to stop within an epoch, and go on there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conr_ray.data.store import open_data
from conr_ray.engine.checkpoints import CheckpointFolder
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.step_figures import Pace, StepFigures
from conr_ray.engine.stopping import stop_request
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunStopped, StorageError, UserError
from conr_ray.method.batch_norm import divide_batch_norm, set_running_statistics
from conr_ray.method.collectives import rank
from conr_ray.storage import disk
from conr_ray.storage.locks import FileLocks
from tests.engine.test_loop import assert_same_tensors, final_state
from tests.gloo_workers import run_workers
from tests.storage.faulty import FaultyDisk, Killed, failing_by, killed
from tests.tiny_runs import run_here, run_step_by_step, tiny_config, without_times

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {
    "schedule__epochs": 2,
    "schedule__group_start": 1,
    "evaluation__neighbors": False,
}


class AskAfter(Observers):
    """Asks for a stop after an epoch, in whose evaluation a signal may have come."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last = epoch

    def epoch(self, row: MetricRow) -> None:
        stop_request.asked = row["epoch"] == self.last


@pytest.fixture(autouse=True)
def _nobody_asks() -> Any:
    yield
    stop_request.asked = False


def _in_groups() -> Any:
    # Workers have running statistics of their own until an epoch ends.
    return tiny_config(model__norm_batch=32, optim__batch_size=128, **SHORT)


def _whole_and_stopped(folder: str) -> tuple[Any, Any, list[str]]:
    whole = run_here(_in_groups(), Path(folder) / "whole")
    rows, told = run_step_by_step(_in_groups(), Path(folder) / "stopped")
    return without_times(whole), without_times(rows), told


def test_two_workers_stop_after_the_same_step_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    found = run_workers(_whole_and_stopped, 2, str(tmp_path), time_limit_s=600)
    for whole, rows, told in found:
        places = [(epoch, step) for epoch in (1, 2) for step in (1, 2)]
        assert told == [f"stopped in epoch {e} after step {s} of 2" for e, s in places]
        assert rows == whole
    states = [final_state(tmp_path / name, 2) for name in ("whole", "stopped")]
    assert_same_tensors(*states)


def _stop_at_once(folder: str) -> None:
    stop_request.asked = rank() == 0
    with pytest.raises(RunStopped):
        run_here(_in_groups(), Path(folder))


def test_a_run_stopped_within_an_epoch_goes_on_with_another_number_of_workers(
    tmp_path: Path,
) -> None:
    whole = without_times(run_here(_in_groups(), tmp_path / "whole"))
    run_workers(_stop_at_once, 2, str(tmp_path / "stopped"))
    rows = without_times(run_here(_in_groups(), tmp_path / "stopped"))
    assert rows[1]["loss"] == pytest.approx(whole[1]["loss"], abs=1e-3)


def test_a_stop_asked_between_epochs_comes_after_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"^stopped in epoch 2 after step \d of 4$"):
        run_here(tiny_config(**SHORT), tmp_path, AskAfter(0))
    # The request is met.
    assert not stop_request.asked and not stop_request.heeded
    directory = RunDirectory(tmp_path)
    assert [row["epoch"] for row in directory.metric_rows()] == [0]
    assert directory.way_on().startswith("which goes on in epoch 2 after step ")
    with pytest.raises(RunStopped, match="stopped in epoch 2"):
        directory.raise_failure()


def test_a_run_that_was_stopped_in_its_trunk_goes_on_there(tmp_path: Path) -> None:
    config = tiny_config()
    folder = str(tmp_path / "trunks")
    store = TrunkStore(folder, frozenset({2}), FileLocks(folder))

    def attempt(observer: Observer) -> list[MetricRow]:
        directory = RunDirectory(tmp_path / "run")
        return train_from_trunk(config, open_data(config.data), directory, observer, CPU, store)

    whole = without_times(run_here(config, tmp_path / "whole"))
    for told in ("in epoch 1 after step 1", "in epoch 1 after step 2"):
        stop_request.asked = True
        with pytest.raises(RunStopped, match=told):
            attempt(Observers())
    # After the trunk, in the first epoch of its own.
    with pytest.raises(RunStopped, match="in epoch 4"):
        attempt(AskAfter(2))
    assert without_times(attempt(Observers())) == whole
    assert_same_tensors(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


# The files


def _save(folder: CheckpointFolder, epoch: int, steps: int = 0) -> None:
    folder.save_checkpoint(epoch, {"epoch": epoch, "steps": steps}, {}, keep=2, steps=steps)


def test_a_checkpoint_within_an_epoch_stays_until_there_is_a_later_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for place in ((1, 0), (2, 0), (3, 0), (3, 17), (3, 20)):
        _save(folder, *place)
    # It is none of the newest two after whole epochs.
    assert folder.checkpoints() == [(2, 0), (3, 0), (3, 20)]
    assert folder.checkpoint_epochs() == [2, 3]
    assert folder.newest_checkpoint() == (3, 20)
    assert folder.load_checkpoint(3, CPU, 20)["steps"] == 20
    _save(folder, 4)
    assert folder.checkpoints() == [(3, 0), (4, 0)]
    assert CheckpointFolder(tmp_path / "none").newest_checkpoint() == (0, 0)


def test_a_damaged_one_within_an_epoch_falls_back_to_the_epochs_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CheckpointFolder(tmp_path)
    for place in ((2, 0), (3, 0), (3, 17)):
        _save(folder, *place)
    (tmp_path / "checkpoints/epoch_000003_step_000017/state.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"epoch_000003_step_000017/state\.pt is damaged"):
        folder.load_checkpoint(3, CPU, 17)
    folder.delete_unsound_checkpoints()
    assert folder.checkpoints() == [(2, 0), (3, 0)]
    assert "deleted; the run goes on from that after 3 epochs\n" in capsys.readouterr().err
    # One that was to be deleted when the process was killed.
    (tmp_path / "checkpoints/epoch_000002_step_000005").mkdir()
    (tmp_path / "checkpoints/epoch_000002_step_000005/summary.json").write_text("{}")
    folder.delete_unsound_checkpoints()
    assert folder.checkpoints() == [(2, 0), (3, 0)]


@pytest.mark.parametrize("how", ["no space", "killed"])
def test_a_stop_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for fails_at in range(1, 100):
        folder = CheckpointFolder(tmp_path / str(fails_at))
        _save(folder, 3)
        _save(folder, 3, 17)
        faulty = FaultyDisk(fails_at, killed if how == "killed" else failing_by(errno.ENOSPC))
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", faulty)
            try:
                _save(folder, 3, 20)
            except (StorageError, Killed):
                pass
            else:
                break
        folder = CheckpointFolder(tmp_path / str(fails_at))
        folder.delete_unsound_checkpoints()
        epoch, steps = folder.newest_checkpoint()
        assert (epoch, steps) in ((3, 17), (3, 20)), fails_at
        assert folder.load_checkpoint(epoch, CPU, steps)["steps"] == steps
        assert len(folder.checkpoints()) == 2
    assert fails_at > 10


# The figures of the steps


def _figures(pace: Pace | None = None, so_far: Any = None) -> StepFigures:
    return StepFigures(5, 9, pace or Pace(), "none yet", so_far)


def _added(figures: StepFigures, losses: list[float]) -> StepFigures:
    for loss in losses:
        shares = {"kept": torch.tensor([int(10 * loss), 30])}
        figures.add(torch.tensor(loss), shares, {"lr": loss})
    return figures


def test_figures_that_go_on_are_those_of_all_steps() -> None:
    losses = [float(loss) for loss in torch.rand(9)]
    whole = _added(_figures(), losses)
    whole.look()
    for cut in range(1, 9):
        first = _added(_figures(), losses[:cut])
        assert first.due and not first.look()
        state = first.state_dict()
        rest = _added(_figures(so_far=state), losses[cut:])
        assert rest.num_steps == 9 and rest.due
        rest.look()
        assert rest.means() == whole.means()
        assert rest.latest == whole.latest == {"lr": losses[-1]}
        assert rest.seconds >= state["seconds"]


def test_fast_steps_are_looked_at_seldom_and_slow_ones_each() -> None:
    pace = Pace()
    for seconds, steps in ((1.0, 2), (0.1, 20), (0.001, 50), (60.0, 1)):
        pace.time(10, 10 * seconds)
        assert pace.wished == steps
    # What a look has timed holds from the one after the next on, and for later epochs.
    figures = _figures(pace)
    pace.wished = 4
    _added(figures, [0.5]).look()
    assert pace.steps == 4
    assert not _added(figures, [0.5] * 3).due and _added(figures, [0.5]).due


def _summed(_: str) -> dict[str, float]:
    figures = _added(_figures(), [0.1 * (rank() + 1), 0.2])
    stop_request.asked = rank() == 2
    asked = figures.look()
    stop_request.asked = False
    return {**figures.means(), "asked": float(asked)}


def test_figures_are_summed_over_the_workers_and_so_is_the_wish_to_stop() -> None:
    losses = [torch.tensor(0.1 * (worker + 1)).item() for worker in range(3)]
    kept = sum(int(10 * 0.1 * (worker + 1)) + 2 for worker in range(3)) / (3 * 60)
    for found in run_workers(_summed, 3, ""):
        expected = (sum(losses) + 3 * torch.tensor(0.2).item()) / 2
        assert found == {"loss": pytest.approx(expected), "kept": kept, "asked": 1.0}


def _statistics(rows: Tensor) -> list[float]:
    network = divide_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm1d(1)), 2)
    set_running_statistics(network, rows)
    return [float(value) for _, value in sorted(network.state_dict().items()) if value.numel() == 1]


def test_each_worker_gets_its_own_running_statistics_back_or_the_mean() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    first, second = run_workers(_statistics, 2, rows)
    alone = _statistics(rows)
    assert (first[2:4], second[2:4], alone[2:4]) == ([1.0, 2.0], [3.0, 6.0], [2.0, 4.0])
