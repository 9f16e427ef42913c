"""A run that is killed, or whose disk fails, at any of its file operations ends as any other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from conr_ray.data.cache import default_cache_dir
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import StorageError
from conr_ray.storage import disk
from tests.storage.faulty import FAULTS, FaultyDisk, Killed, PowerLoss, away, failing_by
from tests.tiny_runs import run_here, tiny_config, without_times

CONFIG = tiny_config(
    data__limit=64,
    optim__batch_size=32,
    bank__size=0,
    schedule__epochs=2,
    schedule__group_start=1,
    schedule__warmup_epochs=0,
    checkpoint__keep=1,
)
# Every so many operations, where not all are tried.
STRIDE = 11


def attempt(folder: Path) -> list[dict[str, Any]]:
    """What a command does: claim, clear up, train."""
    directory = RunDirectory(folder)
    directory.claim(CONFIG, resume=True)
    directory.tidy()
    return without_times(run_here(CONFIG, folder))


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], int]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    # The decoded copy is made once: its operations are not those of a run.
    open_data(CONFIG.data)
    with pytest.MonkeyPatch.context() as patch:
        counting = FaultyDisk()
        patch.setattr(disk, "os", counting)
        rows = attempt(folder)
    return folder, rows, counting.count


def check(
    folder: Path,
    kind: str,
    fails_at: int,
    undisturbed: tuple[Path, list[dict[str, Any]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, rows, _ = undisturbed
    fault = FAULTS[kind](folder)
    faulty = FaultyDisk(fails_at, fault)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", faulty)
        try:
            attempt(folder)
        except (StorageError, Killed) as error:
            assert "\n" not in str(error), fails_at
        else:
            # A note that an entry of the cache is used may fail.
            cache = default_cache_dir()
            of_cache = [cache in Path(str(place)).parents for place in faulty.failed]
            assert kind == "written in part" or (of_cache and all(of_cache)), fails_at
    if away(folder).exists():
        # Nothing was written in its place.
        assert not folder.exists(), fails_at
        away(folder).rename(folder)
    if isinstance(fault, PowerLoss):
        # Lost is at most what one change was about to do.
        assert len(fault.restore()) <= 1, fails_at
    assert attempt(folder) == rows, fails_at
    assert files_of(folder) == files_of(whole), fails_at
    for name in ("assignments.parquet", "config.yaml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), fails_at


@pytest.mark.parametrize("kind", FAULTS)
def test_some_operations_fail(
    kind: str,
    undisturbed: tuple[Path, list[dict[str, Any]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = 5 + 2 * list(FAULTS).index(kind)
    for fails_at in range(first, undisturbed[2] + 1, 4 * STRIDE):
        check(tmp_path / str(fails_at), kind, fails_at, undisturbed, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("kind", FAULTS)
def test_every_operation_fails(
    kind: str,
    undisturbed: tuple[Path, list[dict[str, Any]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for fails_at in range(1, undisturbed[2] + 1):
        check(tmp_path / str(fails_at), kind, fails_at, undisturbed, monkeypatch)


def test_a_full_disk_is_named_with_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.claim(CONFIG, resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", FaultyDisk(2, failing_by(errno.ENOSPC)))
        with pytest.raises(StorageError) as caught:
            directory.write_metrics([{"epoch": 0}])
    assert str(caught.value) == (
        f"{directory.uri}/metrics.parquet cannot be written ({os.strerror(errno.ENOSPC)}): make "
        "room or restore the storage, then resume"
    )
    assert directory.metric_rows() == [] and not list((tmp_path / "run").glob("*.part"))
