from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.errors import StorageError
from conr_ray.reporting import map_cache
from conr_ray.reporting.map_cache import map_positions
from conr_ray.tracking import embedding_map


@pytest.fixture
def directory(finished_run: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished_run / "snapshot", tmp_path / "run" / "snapshot")
    (tmp_path / "run/snapshot/map.parquet").unlink(missing_ok=True)
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def snapshot(directory: RunDirectory) -> Snapshot:
    found = Snapshot.read(directory)
    assert found is not None
    return found


def fail(*_: Any) -> Any:
    raise AssertionError("the map was drawn")


def test_a_map_is_drawn_once_and_kept(
    directory: RunDirectory, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert map_positions(directory, snapshot, draw=False) is None
    drawn = map_positions(directory, snapshot, draw=True)
    assert drawn is not None and np.isfinite(drawn).all()
    table = pq.read_table(f"{directory.uri}/snapshot/map.parquet")
    assert table.column_names == ["sample_id", "x", "y"]
    assert table["sample_id"].equals(snapshot.samples["sample_id"])
    monkeypatch.setattr(embedding_map, "map_2d", fail)
    again = map_positions(directory, snapshot, draw=False)
    assert again is not None and (again == drawn).all()


def test_a_map_of_another_snapshot_is_drawn_anew(
    directory: RunDirectory, snapshot: Snapshot
) -> None:
    map_positions(directory, snapshot, draw=True)
    fewer = Snapshot(
        snapshot.epoch,
        snapshot.num_images,
        snapshot.class_names,
        snapshot.samples.slice(10),
        *(snapshot.neighbors, snapshot.examples, snapshot.pictures, snapshot.confusion),
    )
    assert map_positions(directory, fewer, draw=False) is None
    drawn = map_positions(directory, fewer, draw=True)
    assert drawn is not None and len(drawn) == 290


def test_a_damaged_map_is_drawn_anew(directory: RunDirectory, snapshot: Snapshot) -> None:
    Path(f"{directory.uri}/snapshot/map.parquet").write_bytes(b"PAR1")
    assert map_positions(directory, snapshot, draw=True) is not None


def test_where_nothing_can_be_written_the_map_is_still_there(
    directory: RunDirectory, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StorageError("the file system is read-only")

    monkeypatch.setattr(map_cache.Folder, "write_table", refuse)
    assert map_positions(directory, snapshot, draw=True) is not None
