"""Runs whose boundary ratios are taken of the means of clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conr_ray import TrainedRun
from conr_ray.config import RunConfig
from conr_ray.data.store import open_data
from conr_ray.engine.observer import Observers
from conr_ray.engine.run import Run
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.span import WHOLE
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.storage.locks import FileLocks
from tests.engine.test_loop import StopAfter, assert_same_tensors, final_state
from tests.tiny_runs import run_here, tiny_config, without_times

CPU = torch.device("cpu")


def _config(centers: str = "mean") -> RunConfig:
    # Half of the rows are left out, so that ratios decide the loss of the group stage.
    return tiny_config(
        boundary__centers=centers,
        boundary__initial_fraction=0.5,
        schedule__relax_epochs=4,
        schedule__epochs=3,
        schedule__group_start=2,
        evaluation__neighbors=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mean")
    run_here(_config(), folder)
    return folder


def test_ratios_of_assignments_snapshot_and_new_samples_are_of_the_means(folder: Path) -> None:
    table = RunDirectory(folder).read_table("assignments.parquet")
    run, rows = TrainedRun.load(folder), open_data(_config().data).rows
    embeddings, clusters = run.embed(rows).numpy(), table["cluster"].to_numpy()
    means = np.stack([embeddings[clusters == cluster].mean(0) for cluster in range(10)])
    expected = []
    for row, cluster in zip(embeddings, clusters, strict=True):
        distances = np.linalg.norm(row - means, axis=1)
        expected.append(distances[cluster] / np.delete(distances, cluster).min())
    told, ratios = run.assign(rows)
    assert told.tolist() == clusters.tolist()
    snapshot = Snapshot.read(RunDirectory(folder))
    assert snapshot is not None
    for found in (
        table["boundary_ratio"].to_numpy(),
        snapshot.samples["boundary_ratio"].to_numpy(),
        ratios.numpy(),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_kind_of_centre_changes_the_group_stage_only(folder: Path, tmp_path: Path) -> None:
    rows = RunDirectory(folder).metric_rows()
    other = run_here(_config("unit"), tmp_path)
    assert without_times(other)[:2] == without_times(rows)[:2]
    # Whether the same rows are kept is chance: what steps are given is not.
    for kind, of_unit_length in (("unit", True), ("mean", False)):
        run = Run(_config(kind), open_data(_config().data), RunDirectory(folder), CPU, WHOLE)
        centers_cd = next(run.steps(2)).centers_cd
        assert centers_cd is not None
        lengths_c = centers_cd.norm(dim=1)
        assert torch.equal(lengths_c.round(decimals=5) == 1, torch.full((10,), of_unit_length))


def test_forks_and_resumed_runs_equal_whole_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(_config(), tmp_path / "resumed", StopAfter(1))
    run_here(_config(), tmp_path / "resumed")
    # The trunk knows no boundary filter: its clusters serve either kind of centre.
    uri = str(tmp_path / "trunks")
    store, config = TrunkStore(uri, frozenset({2}), FileLocks(uri)), _config()
    directory, data = RunDirectory(tmp_path / "fork"), open_data(config.data)
    train_from_trunk(config, data, directory, Observers(), torch.device("cpu"), store)
    for name in ("resumed", "fork"):
        assert_same_tensors(final_state(folder, 3), final_state(tmp_path / name, 3))


def test_a_checkpoint_without_lengths_is_clustered_anew(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(_config(), tmp_path, StopAfter(1))
    state = RunDirectory(tmp_path).load_checkpoint(2, torch.device("cpu"))
    del state["center_lengths"]
    RunDirectory(tmp_path).save_checkpoint(2, state, {}, keep=1)
    run_here(_config(), tmp_path)
    assert_same_tensors(final_state(folder, 3), final_state(tmp_path, 3))
