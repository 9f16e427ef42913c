"""Runs whose images stay encoded, and runs that are killed in long epochs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conr_ray.config import RunConfig, override
from conr_ray.data.arrays import as_images
from conr_ray.data.encoded_rows import EncodedRows
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import open_data
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import SampleLost
from tests.engine.test_loop import assert_same_tensors, final_state
from tests.gloo_workers import run_workers
from tests.tiny_runs import TINY, as_settings, run_here, tiny_config, without_times
from tests.waiting import HANG_S

SHORT: dict[str, Any] = {"schedule__epochs": 2, "schedule__group_start": 1}
PAIRS: dict[str, Any] = {"neighborhood__pool": "data", "bank__size": 0, **SHORT}


def _pictures(folder: Path) -> dict[str, Any]:
    """The digits as files in a folder for each class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(
        zip(as_images(digits.images, 16)[:320], digits.target, strict=False)
    ):
        path = folder / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    return {"data__source": "folder", "data__path": str(folder)}


def _streamed(config: RunConfig) -> RunConfig:
    return override(config, {"data.stream": "always"})


def _assert_equal_runs(config: RunConfig, folder: Path) -> None:
    epochs = config.schedule.epochs
    rows = without_times(run_here(config, folder / "decoded"))
    assert without_times(run_here(_streamed(config), folder / "streamed")) == rows
    states = [final_state(folder / name, epochs) for name in ("decoded", "streamed")]
    for state in states:
        del state["config"], state["history"]
    assert_same_tensors(*states)
    for name in ("assignments.parquet", "neighbors.parquet"):
        tables = [RunDirectory(folder / way).read_table(name) for way in ("decoded", "streamed")]
        assert tables[0] is not None and tables[0].equals(tables[1]), name


@pytest.mark.parametrize("changes", [{}, PAIRS], ids=["batch", "pairs"])
def test_a_streamed_run_is_bit_for_bit_the_other(tmp_path: Path, changes: dict[str, Any]) -> None:
    _assert_equal_runs(tiny_config(**changes), tmp_path)


def test_so_is_one_on_files_in_folders(tmp_path: Path) -> None:
    config = tiny_config(**_pictures(tmp_path / "set"), **SHORT)
    assert open_data(_streamed(config).data).is_streamed
    _assert_equal_runs(config, tmp_path)


def _streamed_and_decoded(folder: str) -> list[Any]:
    config = tiny_config(data__limit=320, **SHORT)
    ways = {"decoded": config, "streamed": _streamed(config)}
    return [without_times(run_here(one, Path(folder) / name)) for name, one in ways.items()]


def test_two_workers_stream_the_same(tmp_path: Path) -> None:
    for decoded, streamed in run_workers(_streamed_and_decoded, 2, str(tmp_path)):
        assert decoded == streamed


def test_batches_ahead_are_decoded_and_no_more(tmp_path: Path) -> None:
    config = _streamed(tiny_config(**_pictures(tmp_path / "set"), data__limit=None))
    data = open_data(config.data)
    inputs = make_inputs(config, data, torch.device("cpu"))
    rows = data.rows
    assert isinstance(rows, EncodedRows)
    batches = torch.split(torch.randperm(320), 32)
    begun = 0

    def counted() -> Any:
        nonlocal begun
        for batch in batches:
            begun += 1
            yield batch

    ahead = inputs.prefetched(counted(), lambda batch: [batch])
    for number, batch in enumerate(ahead, 1):
        assert begun == min(10, number + 3)
        expected = torch.from_numpy(rows[batch.numpy()].copy())
        assert torch.equal(inputs.take(batch), expected)
        if number == 5:
            break
    ahead.close()
    # What nobody will ask for is given up.
    assert not rows._expected


class _Losing(Observers):
    """Removes a file after the first epoch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def epoch(self, row: MetricRow) -> None:
        self._path.unlink(missing_ok=True)


def test_a_picture_that_is_lost_ends_the_run_and_resume_goes_on(tmp_path: Path) -> None:
    config = _streamed(tiny_config(**_pictures(tmp_path / "set"), data__limit=None, **SHORT))
    whole = without_times(run_here(config, tmp_path / "whole"))
    path = tmp_path / "set" / "0" / "0000.png"
    content, times = path.read_bytes(), path.stat()
    with pytest.raises(SampleLost, match=r"^image 0 \(0/0000.png\) .*put back the file as it was"):
        run_here(config, tmp_path / "run", _Losing(path))
    with pytest.raises(SampleLost, match="put back"):
        RunDirectory(tmp_path / "run").raise_failure()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert without_times(run_here(config, tmp_path / "run")) == whole


# Checkpoints within epochs


class _Counting(Observers):
    """Notes the checkpoints that there are after each epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._directory, self.found = RunDirectory(folder), []

    def epoch(self, row: MetricRow) -> None:
        self.found.append(self._directory.checkpoints())


def test_checkpoints_within_epochs_change_nothing(tmp_path: Path) -> None:
    often = {"checkpoint__every": 3, "checkpoint__every_minutes": 1e-9}
    seldom = _Counting(tmp_path / "whole")
    whole = without_times(run_here(tiny_config(checkpoint__every=3), tmp_path / "whole", seldom))
    assert seldom.found == [[], [], [(3, 0)], [(3, 0), (4, 0)]]
    counting = _Counting(tmp_path / "often")
    assert without_times(run_here(tiny_config(**often), tmp_path / "often", counting)) == whole
    # After each look, and of each epoch the last one stays until the next.
    assert [found[-1] for found in counting.found] == [(0, 4), (1, 4), (3, 0), (4, 0)]
    assert all(len(found) <= 2 for found in counting.found)
    states = [final_state(tmp_path / name) for name in ("whole", "often")]
    for state in states:
        del state["config"], state["history"]
    assert_same_tensors(*states)
    # Two workers write what one of them wants.
    for rows, found in run_workers(_often_on_two, 2, str(tmp_path / "two")):
        assert rows == 2 and found[0][-1][1] > 0


def _often_on_two(folder: str) -> Any:
    config = tiny_config(checkpoint__every_minutes=1e-9, checkpoint__every=3, **SHORT)
    counting = _Counting(Path(folder))
    rows = run_here(config, Path(folder), counting)
    return len(rows), counting.found


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_run_that_is_killed_in_an_epoch_goes_on_there(tmp_path: Path, stream: str) -> None:
    # Only the checkpoints within epochs are written before the end.
    changes = {**TINY, "schedule.epochs": 6, "checkpoint.every": 1000, "data.stream": stream}
    changes |= {"data.limit": 1200, "checkpoint.every_minutes": 1e-9, "optim.precision": "fp32"}
    config = tiny_config(**{name.replace(".", "__"): value for name, value in changes.items()})
    command = [sys.executable, "-m", "conr_ray.train", "--preset", "digits", "--local"]
    command += [*as_settings(changes), "--storage", str(tmp_path), "--name", "run"]
    command += ["--cpus-per-worker", "1"]
    directory = RunDirectory(tmp_path / "run")
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + HANG_S
        while directory.newest_checkpoint() < (1, 3):
            assert time.monotonic() < deadline and run.poll() is None, "the run does not train"
            time.sleep(0.01)
    finally:
        run.kill()
        run.wait()
    epoch, step = directory.newest_checkpoint()
    assert (1, 3) <= (epoch, step) < (6, 0) and step > 0
    subprocess.run([*command, "--resume"], check=True, timeout=HANG_S, capture_output=True)
    with_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_here(config, tmp_path / "whole")
    finally:
        torch.set_num_threads(with_threads)
    found = [RunDirectory(tmp_path / name) for name in ("whole", "run")]
    rows = [without_times(one.metric_rows()) for one in found]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    states = [final_state(tmp_path / name, 6) for name in ("whole", "run")]
    for part in ("framework", "optimizer", "bank"):
        assert_same_tensors(states[0][part], states[1][part], part)
